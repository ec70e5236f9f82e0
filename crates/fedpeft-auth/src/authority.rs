//! The authority of one federation: a folder with its keys, what it issued, and the server's configuration.

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use fedpeft_protocol::ClientId;
use nkeys::KeyPair;

use crate::{
    AuthError, Issued, Role, Settings,
    claims::{Account, Allow, Body, Limits, Operator, SigningKey, UNLIMITED, User, UserLimits, sign},
    files::{private_folder, write_private},
    keys::Keys,
    role, roster, server,
    state::{State, now},
};

/// Streams: FedPEFT has nine, and an operator may add a few.
const STREAMS: i64 = 32;

/// An authority, held for this process alone.
pub struct Authority {
    folder: PathBuf,
    keys: Keys,
    state: State,
    _lock: File,
}

/// Credentials to issue.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// Holder.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Clients it speaks for: at least one for [`Role::Client`], none for others.
    pub clients: Vec<ClientId>,
    /// How long they are valid; for ever where absent.
    pub lifetime: Option<Duration>,
}

impl Authority {
    /// Makes an authority in `folder`, with credentials for one of each service and the system account.
    /// One that is there is replaced only where `force` says so.
    pub fn init(folder: &Path, settings: Settings, force: bool) -> Result<Self, AuthError> {
        let occupied = paths::state(folder).exists() || paths::keys(folder).exists();
        if occupied && !force {
            return Err(AuthError::Occupied(folder.to_owned()));
        }
        private_folder(folder)?;
        let lock = lock(folder)?;
        let folder = fs::canonicalize(folder).map_err(AuthError::file(folder))?;
        // Credentials of the former authority would only confuse.
        let _ = fs::remove_file(paths::roster(&folder));
        if paths::identities(&folder).exists() {
            fs::remove_dir_all(paths::identities(&folder)).map_err(AuthError::file(&folder))?;
        }
        for former in [paths::creds(&folder), paths::keys(&folder), paths::resolver(&folder)] {
            if former.exists() {
                fs::remove_dir_all(&former).map_err(AuthError::file(&former))?;
            }
            private_folder(&former)?;
        }
        let keys = Keys::generate();
        keys.write(&paths::keys(&folder))?;
        let mut authority = Self { folder, keys, state: State::new(settings), _lock: lock };
        write_private(&authority.server_config(), &server::main(&authority.state.settings))?;
        let mut made = vec![authority.system_user()?];
        for role in Role::SINGLE {
            let name = role.name().to_owned();
            made.push(authority.issue(&Enrolment { name, role, clients: vec![], lifetime: None })?);
        }
        authority.save()?;
        made.into_iter().try_for_each(|one| one.write(&authority.folder))?;
        Ok(authority)
    }

    /// The authority of `folder`.
    pub fn open(folder: &Path) -> Result<Self, AuthError> {
        if !paths::state(folder).exists() {
            return Err(AuthError::Absent(folder.to_owned()));
        }
        let lock = lock(folder)?;
        let folder = fs::canonicalize(folder).map_err(AuthError::file(folder))?;
        let (keys, state) = (Keys::read(&paths::keys(&folder))?, State::read(&paths::state(&folder))?);
        Ok(Self { folder, keys, state, _lock: lock })
    }

    /// Whether credentials can be issued; those of a holder who has some are replaced only where `force` says so.
    pub fn check(&self, enrolment: &Enrolment, force: bool) -> Result<(), AuthError> {
        ClientId::new(enrolment.name.as_str())?;
        match (enrolment.role, enrolment.clients.is_empty()) {
            (Role::Client, true) => return Err(AuthError::Clients("a worker's credentials need a client")),
            (Role::Client, false) | (_, true) => {}
            (_, false) => return Err(AuthError::Clients("only credentials of the role client name clients")),
        }
        let has_some = self.valid(&enrolment.name) || self.creds(&enrolment.name).exists();
        if has_some && !force {
            return Err(AuthError::Issued { name: enrolment.name.clone() });
        }
        expiry(enrolment.lifetime, now()).map(drop)
    }

    /// Issues credentials and returns their file. Those that are replaced are revoked: says whether there were
    /// some, so that the server must learn of it.
    pub fn enrol(&mut self, enrolment: &Enrolment, force: bool) -> Result<(PathBuf, bool), AuthError> {
        self.check(enrolment, force)?;
        let replaced = self.valid(&enrolment.name) && self.void(&enrolment.name);
        let made = self.issue(enrolment)?;
        // The list first: what it does not hold could not be revoked.
        self.save()?;
        made.write(&self.folder)?;
        if enrolment.role == Role::Client {
            roster::add(&self.folder, &enrolment.clients, force)?;
            roster::write(&self.folder, &self.keys.operator)?;
        }
        Ok((self.creds(&enrolment.name), replaced))
    }

    /// Makes the credentials of a holder void; the server must learn of it.
    pub fn revoke(&mut self, name: &str) -> Result<(), AuthError> {
        if !self.void(name) {
            return Err(AuthError::Unknown { name: name.chars().take(80).collect() });
        }
        self.save()?;
        self.strike(name)?;
        // The file is worth nothing now, and would be in the way of new credentials.
        let path = paths::of(&self.folder, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(AuthError::file(path)(error)),
            _ => Ok(()),
        }
    }

    /// Replaces the key that signs credentials of a role, and all valid credentials that it signed: returns the new
    /// ones. The server must learn of it. What breaks off can be done again.
    pub fn rotate(&mut self, role: Role) -> Result<Vec<Issued>, AuthError> {
        let now = now();
        let held: Vec<Issued> =
            self.state.issued.iter().filter(|one| one.role == role && one.is_valid(now)).cloned().collect();
        self.keys.renew(role, &paths::keys(&self.folder))?;
        self.state.touch();
        let mut made = Vec::new();
        for Issued { name, clients, expires, .. } in held {
            self.void(&name);
            let lifetime = expires.map(|end| Duration::from_secs(end.saturating_sub(now)));
            made.push(self.issue(&Enrolment { name, role, clients, lifetime })?);
        }
        self.save()?;
        made.iter().try_for_each(|one| one.write(&self.folder))?;
        Ok(self.state.issued.iter().rev().take(made.len()).rev().cloned().collect())
    }

    /// Writes the accounts anew, as this version of the program has them: those of an earlier one may lack what roles need now.
    /// Credentials stay as they are, for what a role may do is in the account. The server must learn of it.
    pub fn refresh(&mut self) -> Result<(), AuthError> {
        // One that is not newer than the server's own would be ignored.
        self.state.touch();
        self.save()
    }

    /// All that was issued, in order.
    pub fn issued(&self) -> &[Issued] {
        &self.state.issued
    }

    /// Where the authority lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The configuration to start `nats-server` with.
    pub fn server_config(&self) -> PathBuf {
        self.folder.join("nats.conf")
    }

    /// Credentials of `name`.
    pub fn creds(&self, name: &str) -> PathBuf {
        paths::of(&self.folder, name)
    }

    /// Credentials that may tell the server of changed accounts, and nothing of the federation.
    pub fn system_creds(&self) -> PathBuf {
        paths::of(&self.folder, SYSTEM)
    }

    /// Tokens of the accounts that a change concerns, for the server.
    pub fn accounts(&self) -> Result<Vec<String>, AuthError> {
        Ok(vec![self.services_account()?.1, self.clients_account()?.1])
    }

    /// Takes the clients of `name` off the roster, unless other credentials speak for them.
    fn strike(&self, name: &str) -> Result<(), AuthError> {
        let now = now();
        let held = self.state.issued.iter().filter(|one| one.is_valid(now)).flat_map(|one| &one.clients);
        let held: BTreeSet<&ClientId> = held.collect();
        let of_it = self.state.issued.iter().filter(|one| one.name == name).flat_map(|one| &one.clients);
        let gone: BTreeSet<&ClientId> = of_it.filter(|client| !held.contains(client)).collect();
        if gone.is_empty() || !paths::roster(&self.folder).exists() {
            return Ok(());
        }
        gone.into_iter().try_for_each(|client| roster::remove(&self.folder, client))?;
        roster::write(&self.folder, &self.keys.operator)
    }

    /// The public key of the operator, which signs the roster.
    pub fn operator(&self) -> String {
        self.keys.operator.public_key()
    }

    /// The roster of clients in secure aggregation, once a client was enrolled.
    pub fn roster(&self) -> PathBuf {
        paths::roster(&self.folder)
    }

    fn valid(&self, name: &str) -> bool {
        let now = now();
        self.state.issued.iter().any(|one| one.name == name && one.is_valid(now))
    }

    /// Marks what `name` holds as void. Says whether there was something.
    fn void(&mut self, name: &str) -> bool {
        let now = now();
        let live = self.state.issued.iter_mut().filter(|one| one.name == name && one.revoked.is_none());
        let mut any = false;
        for one in live {
            (one.revoked, any) = (Some(now), true);
        }
        if any {
            self.state.touch();
        }
        any
    }

    /// Makes credentials and notes them, without writing either.
    fn issue(&mut self, enrolment: &Enrolment) -> Result<Creds, AuthError> {
        let Enrolment { name, role, clients, lifetime } = enrolment;
        let issued = now();
        let expires = expiry(*lifetime, issued)?;
        let user = KeyPair::new_user();
        let tags = clients.iter().map(|client| format!("client:{client}"));
        let body = Body::User(User {
            tags: [format!("role:{role}")].into_iter().chain(tags).collect(),
            issuer_account: self.keys.account_of(*role).public_key(),
            publish: Allow::default(),
            subscribe: Allow::default(),
            limits: None,
        });
        let token = sign(self.keys.role(*role)?, &user.public_key(), name, issued, expires, &body)?;
        self.state.issued.push(Issued {
            name: name.clone(),
            role: *role,
            clients: clients.clone(),
            key: user.public_key(),
            issued,
            expires,
            revoked: None,
        });
        Ok(Creds { name: name.clone(), token, user })
    }

    /// The user of the system account. It is not in the list: who holds this folder can make another.
    fn system_user(&self) -> Result<Creds, AuthError> {
        let user = KeyPair::new_user();
        let body = Body::User(User {
            tags: vec!["role:system".into()],
            issuer_account: self.keys.system.public_key(),
            publish: Allow { allow: vec!["$SYS.REQ.CLAIMS.UPDATE".into()] },
            subscribe: Allow { allow: vec![format!("_INBOX_{SYSTEM}.>")] },
            limits: Some(UserLimits { subs: UNLIMITED, data: UNLIMITED, payload: UNLIMITED }),
        });
        let token = sign(&self.keys.system_signing, &user.public_key(), SYSTEM, now(), None, &body)?;
        Ok(Creds { name: SYSTEM.into(), token, user })
    }

    fn services_account(&self) -> Result<(String, String), AuthError> {
        let account = Account {
            exports: role::exports(),
            limits: Limits {
                // The server's own bounds hold, which know its disk: a larger one would leave it without JetStream.
                mem_storage: UNLIMITED,
                disk_storage: UNLIMITED,
                streams: STREAMS,
                consumer: UNLIMITED,
                ..Limits::default()
            },
            signing_keys: self.scoped(&Role::SINGLE)?,
            revocations: self.state.revocations(false),
            ..Account::default()
        };
        self.account(&self.keys.services, "FEDPEFT", account)
    }

    fn clients_account(&self) -> Result<(String, String), AuthError> {
        let account = Account {
            imports: role::imports(&self.keys.services.public_key()),
            signing_keys: self.scoped(&[Role::Client])?,
            revocations: self.state.revocations(true),
            ..Account::default()
        };
        self.account(&self.keys.clients, "FEDPEFT_CLIENTS", account)
    }

    fn system_account(&self) -> Result<(String, String), AuthError> {
        let signing_keys = vec![SigningKey::Plain(self.keys.system_signing.public_key())];
        self.account(&self.keys.system, "SYS", Account { signing_keys, ..Account::default() })
    }

    fn scoped(&self, roles: &[Role]) -> Result<Vec<SigningKey>, AuthError> {
        let scope = |role: &Role| {
            let key = self.keys.role(*role)?.public_key();
            Ok(SigningKey::Scoped { key, role: role.name(), template: role.template() })
        };
        roles.iter().map(scope).collect()
    }

    fn account(&self, key: &KeyPair, name: &str, account: Account) -> Result<(String, String), AuthError> {
        let key = key.public_key();
        let body = Body::Account(Box::new(account));
        let token = sign(&self.keys.operator_signing, &key, name, self.state.updated, None, &body)?;
        Ok((key, token))
    }

    /// Writes the list and the accounts.
    fn save(&self) -> Result<(), AuthError> {
        self.state.write(&paths::state(&self.folder))?;
        let operator = Body::Operator(Operator {
            signing_keys: vec![self.keys.operator_signing.public_key()],
            system_account: self.keys.system.public_key(),
            strict_signing_key_usage: true,
        });
        let key = self.keys.operator.public_key();
        let operator = sign(&self.keys.operator, &key, "fedpeft", self.state.updated, None, &operator)?;
        let accounts = [self.system_account()?, self.services_account()?, self.clients_account()?];
        let system = self.keys.system.public_key();
        let text = server::accounts(&operator, &system, &accounts, &paths::resolver(&self.folder));
        write_private(&self.folder.join("accounts.conf"), &text)
    }
}

/// Name of the system account's user.
const SYSTEM: &str = "system";

/// The last second that people can write with four digits of a year.
const END_OF_TIME: u64 = 253_402_300_799;

fn expiry(lifetime: Option<Duration>, from: u64) -> Result<Option<u64>, AuthError> {
    let end = |lifetime: Duration| from.checked_add(lifetime.as_secs()).filter(|end| *end <= END_OF_TIME);
    lifetime.map(|lifetime| end(lifetime).ok_or(AuthError::Lifetime)).transpose()
}

/// Credentials that were made but not written.
struct Creds {
    name: String,
    token: String,
    user: KeyPair,
}

impl Creds {
    fn write(&self, folder: &Path) -> Result<(), AuthError> {
        let Self { name, token, user } = self;
        let seed = user.seed().map_err(AuthError::key)?;
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             Who has this file is {name}: keep it secret.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        write_private(&paths::of(folder, name), &text)
    }
}

/// The folder, for this process alone until the file is dropped.
fn lock(folder: &Path) -> Result<File, AuthError> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(AuthError::file(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuthError::Busy(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(AuthError::file(path)(error)),
    }
}

mod paths {
    use std::path::{Path, PathBuf};

    pub fn state(folder: &Path) -> PathBuf {
        folder.join("issued.json")
    }

    pub fn keys(folder: &Path) -> PathBuf {
        folder.join("keys")
    }

    pub fn identities(folder: &Path) -> PathBuf {
        folder.join("identities")
    }

    pub fn creds(folder: &Path) -> PathBuf {
        folder.join("creds")
    }

    pub fn roster(folder: &Path) -> PathBuf {
        folder.join("roster")
    }

    pub fn resolver(folder: &Path) -> PathBuf {
        folder.join("resolver")
    }

    pub fn of(folder: &Path, name: &str) -> PathBuf {
        creds(folder).join(format!("{name}.creds"))
    }
}
