//! `fedpeft auth`: who may do what on the broker.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use fedpeft_auth::{Authority, Enrolment, Issued, Role, ServerTls, Settings};
use fedpeft_bus::{Bus, BusConfig};
use fedpeft_protocol::ClientId;
use serde::Serialize;

use crate::{
    connect::{self, TlsArgs, block_on},
    output::{self, Output},
};

/// What to do with keys and credentials.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the keys of a federation, credentials for its services, and a configuration for nats-server.
    #[command(after_help = "\
Examples:
  fedpeft auth init
  fedpeft auth init --listen 0.0.0.0:4222 --tls-cert server.pem --tls-key server.key
  fedpeft auth init --tls-cert server.pem --tls-key server.key --tls-client-ca ca.pem     # mTLS

Then: nats-server --config fedpeft-auth/nats.conf
      fedpeft-aggregator --creds fedpeft-auth/creds/aggregator.creds      (registry and exporter alike)
      fedpeft run list --creds fedpeft-auth/creds/admin.creds")]
    Init(Box<Init>),
    /// Issue credentials: one for each client, or one for a worker that hosts several.
    #[command(after_help = "\
Examples:
  fedpeft auth enroll hospital-a hospital-b --expires 90d
  fedpeft auth enroll --worker site-1 client-000 client-001 client-002
  fedpeft auth enroll --role aggregator aggregator-2
  fedpeft auth enroll hospital-a --force --server tls://broker:4222       # new ones, the old ones are revoked

Then: fedpeft-worker --client hospital-a --creds hospital-a.creds ...

For secure aggregation each client gets an identity as well, and all of them a roster that the operator's key signs:
  fedpeft-worker ... --identities fedpeft-auth/identities --roster fedpeft-auth/roster --operator OD4Q...")]
    Enroll(Box<Enroll>),
    /// Make credentials void: their holders are thrown out and cannot come back.
    #[command(after_help = "\
Examples:
  fedpeft auth revoke hospital-a --server tls://broker:4222
  fedpeft auth revoke hospital-a hospital-b      # and tell the server later: fedpeft auth push --server ...")]
    Revoke {
        /// Holders, as `fedpeft auth list` shows them.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        server: Server,
        #[command(flatten)]
        output: Output,
    },
    /// Replace the key that signs credentials of a role, and the credentials of all who hold valid ones.
    #[command(after_help = "\
Example:
  fedpeft auth rotate client --server tls://broker:4222

Then: hand the new files out; the former ones are worth nothing.")]
    Rotate {
        /// client, aggregator, registry, exporter or admin.
        role: Role,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        server: Server,
        #[command(flatten)]
        output: Output,
    },
    /// Show who has credentials.
    #[command(after_help = "Example:\n  fedpeft auth list --json")]
    List {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        output: Output,
    },
    /// Tell a running server of all revocations, and what roles may do by this version of the program.
    #[command(after_help = "\
Example:
  fedpeft auth push --server tls://broker:4222 --tls-ca ca.pem

After an upgrade too: what a role may do is in the accounts, which are made anew. Credentials that were handed out stay as they are.")]
    Push {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        server: Server,
        #[command(flatten)]
        output: Output,
    },
}

/// Where the keys are.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// Folder with keys, credentials and the server's configuration. Who reads it can be anybody: guard it.
    #[arg(long, value_name = "DIR", env = "FEDPEFT_AUTH_DIR", default_value = "fedpeft-auth")]
    dir: PathBuf,
}

/// A running server that must learn of a change.
#[derive(Debug, clap::Args)]
pub struct Server {
    /// Address of a running server to tell of the change.
    #[arg(long, value_name = "URL", env = "FEDPEFT_SERVER", hide_env_values = true)]
    server: Option<String>,
    #[command(flatten)]
    tls: TlsArgs,
}

/// `fedpeft auth init`
#[derive(Debug, clap::Args)]
pub struct Init {
    #[command(flatten)]
    place: Place,
    /// Address at which the server takes clients.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4222")]
    listen: String,
    /// Folder of the server's store [default: store in the folder of --dir].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Most gigabytes that all streams may take on the server's disk [default: three quarters of what is free].
    #[arg(long, value_name = "GB", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    max_store_gb: Option<u64>,
    /// The server's certificate, PEM; without one connections are not encrypted.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the server's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authorities whose certificates everybody who connects must show (mTLS), PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Replace what is there. All credentials that were issued become void.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: Output,
}

/// `fedpeft auth enroll`
#[derive(Debug, clap::Args)]
pub struct Enroll {
    /// Clients; with --role, names of services or persons.
    #[arg(required = true, value_name = "CLIENT")]
    names: Vec<ClientId>,
    /// One credentials file of this name for all the clients, for a worker that hosts them.
    #[arg(long, value_name = "NAME", conflicts_with = "role")]
    worker: Option<ClientId>,
    /// What they are: client, aggregator, registry, exporter or admin.
    #[arg(long, value_name = "ROLE", default_value = "client")]
    role: Role,
    /// How long they are valid, as in 12h, 90d or 1y [default: until they are revoked].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    /// Replace credentials that are there, and revoke them.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

/// Runs one of them.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Init(args) => init(*args),
        Command::Enroll(args) => enroll(*args),
        Command::Revoke { names, place, server, output } => revoke(&names, &place, server, output),
        Command::Rotate { role, place, server, output } => {
            let mut authority = Authority::open(&place.dir)?;
            let made = authority.rotate(role)?;
            let made: Vec<Enrolled> = made.into_iter().map(|one| Enrolled::new(one, &authority)).collect();
            output.show(&made, |made| lines(made))?;
            announce(&authority, server)
        }
        Command::List { place, output } => {
            let authority = Authority::open(&place.dir)?;
            let shown: Vec<Shown<'_>> = authority.issued().iter().map(Shown::new).collect();
            output.show(&shown, |shown| table(shown))
        }
        Command::Push { place, server, output } => {
            let mut authority = Authority::open(&place.dir)?;
            if server.server.is_none() {
                bail!("there is no server to tell: name it with --server");
            }
            authority.refresh()?;
            let told = tell(&authority, server)?;
            output.show(&told, |told| format!("{} knows of all revocations and permissions", told.server))
        }
    }
}

#[derive(Serialize)]
struct Made {
    folder: PathBuf,
    server_config: PathBuf,
    creds: Vec<PathBuf>,
}

fn init(args: Init) -> Result<()> {
    let absolute = |path: PathBuf| {
        let found = std::fs::canonicalize(&path);
        found.with_context(|| format!("{} cannot be used", path.display()))
    };
    let tls = match (args.tls_cert, args.tls_key) {
        (Some(cert), Some(key)) => Some(ServerTls {
            cert: absolute(cert)?,
            key: absolute(key)?,
            client_ca: args.tls_client_ca.map(absolute).transpose()?,
        }),
        _ => None,
    };
    let encrypted = tls.is_some();
    let dir = std::path::absolute(&args.place.dir)?;
    let settings = Settings {
        listen: args.listen,
        store: std::path::absolute(args.store.unwrap_or_else(|| dir.join("store")))?,
        max_store: args.max_store_gb.map(|gigabytes| gigabytes.saturating_mul(1_000_000_000)),
        tls,
    };
    let authority = Authority::init(&dir, settings, args.force)?;
    if !encrypted {
        output::remark(
            "warning: connections are not encrypted; give --tls-cert and --tls-key unless all is on one machine",
        );
    }
    let made = Made {
        folder: authority.folder().to_owned(),
        server_config: authority.server_config(),
        creds: authority.issued().iter().map(|one| authority.creds(&one.name)).collect(),
    };
    args.output.show(&made, |made| {
        let creds: String = made.creds.iter().map(|path| format!("\n  {}", path.display())).collect();
        format!(
            "start the server with: nats-server --config {}\ncredentials:{creds}",
            made.server_config.display()
        )
    })
}

#[derive(Serialize)]
struct Enrolled {
    #[serde(flatten)]
    issued: Issued,
    creds: PathBuf,
}

impl Enrolled {
    fn new(issued: Issued, authority: &Authority) -> Self {
        Self { creds: authority.creds(&issued.name), issued }
    }
}

fn lines(made: &[Enrolled]) -> String {
    let line = |one: &Enrolled| format!("{} is in {}", one.issued.name, one.creds.display());
    made.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn enroll(args: Enroll) -> Result<()> {
    let mut authority = Authority::open(&args.place.dir)?;
    let (role, lifetime) = (args.role, args.expires);
    let enrolment = |name: &ClientId, clients| Enrolment { name: name.to_string(), role, clients, lifetime };
    let wanted: Vec<Enrolment> = match &args.worker {
        Some(worker) => vec![enrolment(worker, args.names.clone())],
        None if role == Role::Client => {
            args.names.iter().map(|name| enrolment(name, vec![name.clone()])).collect()
        }
        None => args.names.iter().map(|name| enrolment(name, vec![])).collect(),
    };
    // All or none: a mistake in the last name leaves nothing half done.
    wanted.iter().try_for_each(|one| authority.check(one, args.force))?;
    let (mut made, mut changed) = (Vec::new(), false);
    for one in &wanted {
        changed |= authority.enrol(one, args.force)?.1;
        made.extend(authority.issued().last().cloned().map(|issued| Enrolled::new(issued, &authority)));
    }
    args.output.show(&made, |made| lines(made))?;
    if role == Role::Client {
        output::remark(format!(
            "identities and roster for secure aggregation are in {}; workers check it with --operator {}",
            authority.folder().display(),
            authority.operator()
        ));
    }
    if changed { announce(&authority, args.server) } else { Ok(()) }
}

fn revoke(names: &[String], place: &Place, server: Server, output: Output) -> Result<()> {
    let mut authority = Authority::open(&place.dir)?;
    for name in names {
        authority.revoke(name)?;
    }
    let revoked: Vec<_> =
        authority.issued().iter().filter(|one| names.contains(&one.name)).map(Shown::new).collect();
    output.show(&revoked, |_| format!("revoked {}", names.join(", ")))?;
    announce(&authority, server)
}

/// Tells the server, or the user how to.
fn announce(authority: &Authority, server: Server) -> Result<()> {
    if server.server.is_some() {
        let told = tell(authority, server)?;
        output::remark(format!("{} knows of it: connections with void credentials are closed", told.server));
        return Ok(());
    }
    output::remark("the server does not know of it yet: run `fedpeft auth push --server URL`");
    Ok(())
}

/// A server that knows of all revocations and permissions.
#[derive(Serialize)]
struct Told {
    server: String,
}

fn tell(authority: &Authority, server: Server) -> Result<Told> {
    let tokens = authority.accounts()?;
    let config = BusConfig {
        server: server.server.unwrap_or_default(),
        creds: Some(authority.system_creds()),
        tls: server.tls.into(),
        ..connect::named()
    };
    block_on(async {
        let bus = Bus::connect(&config).await?;
        for token in tokens {
            bus.push_account(&token).await?;
        }
        Ok(Told { server: bus.server().to_owned() })
    })
}

/// A line of the list.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    issued: &'a Issued,
    status: &'static str,
}

impl<'a> Shown<'a> {
    fn new(issued: &'a Issued) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let status = match issued.revoked {
            Some(_) => "revoked",
            None if issued.is_valid(now) => "valid",
            None => "expired",
        };
        Self { issued, status }
    }
}

fn table(shown: &[Shown<'_>]) -> String {
    let mut table = output::table(&["name", "role", "clients", "status", "issued", "expires", "revoked"], []);
    for one in shown {
        let Issued { name, role, clients, issued, expires, revoked, .. } = one.issued;
        let clients: Vec<&str> = clients.iter().map(ClientId::as_str).collect();
        table.add_row([
            name.clone(),
            role.to_string(),
            clients.join(" "),
            one.status.to_owned(),
            date(Some(*issued)),
            date(*expires),
            date(*revoked),
        ]);
    }
    table.trim_fmt()
}

/// A time for people, in UTC.
fn date(seconds: Option<u64>) -> String {
    let time = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    match seconds.and_then(time) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => "-".to_owned(),
    }
}
