//! The broker: a `nats-server` whose store outlives it, on a disk that can be full.

use std::{fs, path::Path, time::Duration};

use async_nats::jetstream::{self, stream};
use fedpeft_bus::server::{LocalServer, ServerOptions};
use fedpeft_testkit::assets;
use rustix::process::Signal;

use crate::{
    disk::{Disk, SIZE_MIB},
    processes::signal,
};

/// Lower than the usual MiB, so that large adapters travel as blobs, whose chunks just fit.
pub const MAX_PAYLOAD: usize = 140_000;

/// A stream that takes the room where the disk itself cannot be filled.
const BALLAST: &str = "BALLAST";

/// Dropping it kills the broker and forgets its store.
pub struct Broker {
    server: LocalServer,
    disk: Disk,
}

impl Broker {
    /// Starts a broker that keeps everything in `folder`.
    pub async fn start(folder: &Path) -> Self {
        let disk = Disk::new(folder.join("disk"));
        let config = folder.join("nats.conf");
        // The limit matters where the disk is none of its own.
        let store = format!("jetstream {{ max_file_store: {SIZE_MIB}MiB }}");
        fs::write(&config, format!("max_payload: {MAX_PAYLOAD}\n{store}\n")).unwrap();
        let store = disk.folder().join("store");
        let binary = assets().nats_server().unwrap();
        let options = ServerOptions { binary, store: Some(store), port: None, config: Some(config) };
        Self { server: LocalServer::start(options).await.unwrap(), disk }
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Kills it and starts it again after a while.
    pub async fn crash(&mut self, down: Duration) {
        self.server.kill().await.unwrap();
        tokio::time::sleep(down).await;
        self.server.resume().await.unwrap();
    }

    /// Lets others take all the room that its store has.
    pub async fn fill(&self) {
        if self.disk.is_small() {
            return self.disk.fill();
        }
        let stream = self.stream().await;
        let config =
            stream::Config { name: BALLAST.into(), subjects: vec!["ballast".into()], ..Default::default() };
        stream.create_stream(config).await.unwrap();
        for size in [128 << 10, 1 << 10] {
            while let Ok(sent) = stream.publish("ballast", vec![0; size].into()).await {
                if sent.await.is_err() {
                    break;
                }
            }
        }
    }

    /// What an operator does whose disk is full: makes room, and starts the broker again, for it may have turned
    /// its store off.
    pub async fn relieve(&mut self) {
        if self.disk.is_small() {
            self.disk.relieve();
        } else {
            self.stream().await.delete_stream(BALLAST).await.unwrap();
        }
        self.server.restart().await.unwrap();
    }

    async fn stream(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.server.url()).await.unwrap())
    }

    /// Stops it for a while.
    pub async fn pause(&self, pause: Duration) {
        let pid = self.server.pid().unwrap();
        signal(pid, Signal::STOP);
        tokio::time::sleep(pause).await;
        signal(pid, Signal::CONT);
    }
}
