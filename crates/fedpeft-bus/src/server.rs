//! A `nats-server` of our own, as a child process: for `fedpeft simulate` and for tests.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::Instant,
};

/// How to start the broker.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The `nats-server` program.
    pub binary: PathBuf,
    /// Folder of the JetStream store; without one the broker runs without JetStream.
    pub store: Option<PathBuf>,
    /// Port on 127.0.0.1; a free one where absent.
    pub port: Option<u16>,
    /// A `nats-server` configuration file to start from, for instance with users and limits.
    pub config: Option<PathBuf>,
}

/// A broker that could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The program cannot be run.
    #[error("cannot run nats-server {}: {source}", binary.display())]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// A local file or socket failed.
    #[error("nats-server: {0}")]
    Io(#[from] std::io::Error),
    /// It ended before it was ready.
    #[error("nats-server ended at once ({status}): {log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last line it logged.
        log: String,
    },
    /// It did not get ready.
    #[error("nats-server was not ready after {} s: {log}", READY_WITHIN.as_secs())]
    NotReady {
        /// The last line it logged.
        log: String,
    },
}

const READY_WITHIN: Duration = Duration::from_secs(20);
/// JetStream writes its state on a signal to stop; after this it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A running broker. It is killed when dropped; [`LocalServer::stop`] ends it in order.
#[derive(Debug)]
pub struct LocalServer {
    child: Child,
    options: ServerOptions,
    port: u16,
    log: PathBuf,
    _run: tempfile::TempDir,
}

impl LocalServer {
    /// Starts the broker and waits until it accepts connections.
    pub async fn start(options: ServerOptions) -> Result<Self, ServerError> {
        let run = tempfile::Builder::new().prefix("fedpeft-nats-").tempdir()?;
        let log = run.path().join("nats-server.log");
        let port = match options.port {
            Some(port) => port,
            None => free_port()?,
        };
        let child = spawn(&options, port, &log)?;
        let mut server = Self { child, options, port, log, _run: run };
        server.ready().await?;
        Ok(server)
    }

    /// Address for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends the broker and starts it again on the same port and store.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.end().await?;
        self.resume().await
    }

    /// Starts a broker again that was stopped with [`Self::end`], on the same port and store.
    pub async fn resume(&mut self) -> Result<(), ServerError> {
        self.child = spawn(&self.options, self.port, &self.log)?;
        self.ready().await
    }

    /// Ends the broker in order: what it acknowledged is on disk.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.end().await
    }

    /// Ends the broker and keeps this handle, so that [`Self::resume`] can start it again.
    pub async fn end(&mut self) -> Result<(), ServerError> {
        let Some(pid) = self.child.id() else { return Ok(()) };
        interrupt(pid).await;
        if tokio::time::timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }

    /// Kills the broker as a crash would, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), ServerError> {
        Ok(self.child.kill().await?)
    }

    async fn ready(&mut self) -> Result<(), ServerError> {
        let give_up = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(ServerError::Ended { status, log: last_line(&self.log) });
            }
            if greets(self.port).await {
                return Ok(());
            }
            if Instant::now() > give_up {
                return Err(ServerError::NotReady { log: last_line(&self.log) });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn spawn(options: &ServerOptions, port: u16, log: &Path) -> Result<Child, ServerError> {
    let mut command = Command::new(&options.binary);
    command.args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--log"]).arg(log);
    if let Some(store) = &options.store {
        command.arg("--jetstream").arg("--store_dir").arg(store);
    }
    if let Some(config) = &options.config {
        command.arg("--config").arg(config);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    // Ctrl-C in a terminal goes to the whole process group. The broker must outlive the services that drain
    // through it, so it gets a group of its own and is ended by us.
    command.process_group(0);
    command.spawn().map_err(|source| ServerError::Spawn { binary: options.binary.clone(), source })
}

/// The broker's own choice of a free port (`-1`) would change at a restart, so one is chosen here.
fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The broker is up when it greets: the first thing it says on a connection is `INFO {...}`.
async fn greets(port: u16) -> bool {
    let greeting = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.ok()?;
        line.starts_with("INFO ").then_some(())
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), greeting).await, Ok(Some(())))
}

/// `SIGINT` through `kill(1)`: sending signals ourselves would need unsafe code.
async fn interrupt(pid: u32) {
    let sent =
        Command::new("kill").args(["-s", "INT", &pid.to_string()]).stderr(Stdio::null()).status().await;
    if let Err(error) = sent {
        tracing::debug!(%error, "cannot run kill(1), the broker will be killed instead");
    }
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("it logged nothing").to_owned()
}
