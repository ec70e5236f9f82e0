//! A real broker for one test.

use std::path::{Path, PathBuf};

use fedpeft_bus::{
    Bus, BusConfig,
    server::{LocalServer, ServerOptions},
};
use tempfile::TempDir;

use crate::assets;

/// A configuration to start from.
enum Config<'a> {
    None,
    Text(&'a str),
    File(&'a Path),
}

/// A `nats-server` with JetStream on a free port and a temporary store. Dropping it kills the broker and
/// removes the store. Its methods panic when the broker cannot be run: the test cannot go on.
pub struct NatsServer {
    server: LocalServer,
    folder: TempDir,
}

impl NatsServer {
    /// Starts a broker with JetStream.
    pub async fn start() -> Self {
        Self::launch(true, Config::None).await
    }

    /// Starts a broker without JetStream.
    pub async fn start_without_jetstream() -> Self {
        Self::launch(false, Config::None).await
    }

    /// Starts a broker with JetStream and a configuration file of this text.
    pub async fn start_with_config(text: &str) -> Self {
        Self::launch(true, Config::Text(text)).await
    }

    /// Starts a broker with this configuration file, which says all but the address.
    pub async fn start_with_file(path: &Path) -> Self {
        Self::launch(false, Config::File(path)).await
    }

    #[allow(clippy::panic, reason = "a test harness reports by panicking")]
    async fn launch(jetstream: bool, config: Config<'_>) -> Self {
        let prepare = || -> Result<(TempDir, ServerOptions), Box<dyn std::error::Error>> {
            let binary = assets().nats_server()?;
            let folder = tempfile::Builder::new().prefix("fedpeft-test-").tempdir()?;
            let config = match config {
                Config::Text(text) => {
                    let path = folder.path().join("nats.conf");
                    std::fs::write(&path, text)?;
                    Some(path)
                }
                Config::File(path) => Some(path.to_owned()),
                Config::None => None,
            };
            let store = jetstream.then(|| folder.path().join("store"));
            Ok((folder, ServerOptions { binary, store, port: None, config }))
        };
        let (folder, options) = match prepare() {
            Ok(prepared) => prepared,
            Err(error) => panic!("{error}"),
        };
        match LocalServer::start(options).await {
            Ok(server) => Self { server, folder },
            Err(error) => panic!("{error}"),
        }
    }

    /// Address for clients.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// A connection with all streams and buckets in place.
    #[allow(clippy::panic, reason = "a test harness reports by panicking")]
    pub async fn bus(&self) -> Bus {
        let config = BusConfig { server: self.url(), name: "test".into(), ..Default::default() };
        let connected = async {
            let bus = Bus::connect(&config).await?;
            bus.ensure_topology().await?;
            Ok::<_, fedpeft_bus::BusError>(bus)
        };
        match connected.await {
            Ok(bus) => bus,
            Err(error) => panic!("{error}"),
        }
    }

    /// Ends the broker and starts it again on the same port and store.
    #[allow(clippy::panic, reason = "a test harness reports by panicking")]
    pub async fn restart(&mut self) {
        if let Err(error) = self.server.restart().await {
            panic!("{error}");
        }
    }

    /// Kills the broker as a crash would; [`Self::resume`] brings it back.
    #[allow(clippy::panic, reason = "a test harness reports by panicking")]
    pub async fn crash(&mut self) {
        if let Err(error) = self.server.kill().await {
            panic!("{error}");
        }
    }

    /// Starts a crashed broker again on the same port and store.
    #[allow(clippy::panic, reason = "a test harness reports by panicking")]
    pub async fn resume(&mut self) {
        if let Err(error) = self.server.resume().await {
            panic!("{error}");
        }
    }

    /// Ends the broker and removes its store.
    #[allow(clippy::panic, reason = "a test harness reports by panicking")]
    pub async fn stop(self) {
        if let Err(error) = self.server.stop().await {
            panic!("{error}");
        }
    }

    /// Folder of the broker's store.
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The temporary folder that goes away with the broker.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
