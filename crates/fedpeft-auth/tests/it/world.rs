//! A broker under the rules of an authority, and people with credentials.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event};
use fedpeft_auth::{Authority, Enrolment, Role, Settings};
use fedpeft_bus::{Bus, BusConfig, BusError};
use fedpeft_protocol::ClientId;
use fedpeft_testkit::NatsServer;
use tempfile::TempDir;

/// Longer than the broker takes for anything here.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct World {
    pub authority: Authority,
    pub nats: NatsServer,
    pub folder: TempDir,
}

pub fn settings(folder: &Path) -> Settings {
    Settings {
        listen: "127.0.0.1:4222".into(),
        store: folder.join("store"),
        max_store: Some(2 << 30),
        tls: None,
    }
}

pub fn client_id(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

pub fn enrolment(name: &str, clients: &[&str], lifetime: Option<Duration>) -> Enrolment {
    let clients = clients.iter().map(|client| client_id(client)).collect();
    Enrolment { name: name.into(), role: Role::Client, clients, lifetime }
}

impl World {
    /// Clients `a` and `B`, and the worker `site` with clients `c` and `d`, around streams that a service made.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut authority =
            Authority::init(&folder.path().join("auth"), settings(folder.path()), false).unwrap();
        for (name, clients) in [("a", &["a"][..]), ("B", &["B"]), ("site", &["c", "d"])] {
            authority.enrol(&enrolment(name, clients, None), false).unwrap();
        }
        let nats = NatsServer::start_with_file(&authority.server_config()).await;
        let world = Self { authority, nats, folder };
        world.bus("registry").await.unwrap().ensure_topology().await.unwrap();
        world
    }

    pub async fn bus(&self, name: &str) -> Result<Bus, BusError> {
        self.bus_with(&self.authority.creds(name)).await
    }

    pub async fn bus_with(&self, creds: &Path) -> Result<Bus, BusError> {
        let (server, creds) = (self.nats.url(), Some(creds.to_owned()));
        Bus::connect(&BusConfig { server, creds, name: "test".into(), ..Default::default() }).await
    }

    /// A bare connection, which obeys nothing but the broker.
    pub async fn person(&self, name: &str) -> Person {
        Person::connect(&self.nats.url(), &self.authority.creds(name), name).await
    }

    /// Tells the broker of revocations.
    pub async fn push(&self) {
        let system = self.bus_with(&self.authority.system_creds()).await.unwrap();
        for token in self.authority.accounts().unwrap() {
            system.push_account(&token).await.unwrap();
        }
    }

    pub fn copy_of_creds(&self, name: &str) -> PathBuf {
        let copy = self.folder.path().join(format!("{name}.copy"));
        std::fs::copy(self.authority.creds(name), &copy).unwrap();
        copy
    }
}

/// A connection and what the broker forbade on it.
pub struct Person {
    pub client: Client,
    forbidden: Arc<Mutex<Vec<String>>>,
}

impl Person {
    async fn connect(server: &str, creds: &Path, name: &str) -> Self {
        let forbidden = Arc::new(Mutex::new(Vec::new()));
        let noted = forbidden.clone();
        let options = ConnectOptions::new().custom_inbox_prefix(format!("_INBOX_{name}")).event_callback(
            move |event| {
                if let Event::ServerError(error) = event {
                    noted.lock().unwrap().push(error.to_string().to_lowercase());
                }
                std::future::ready(())
            },
        );
        let client = options.credentials_file(creds).await.unwrap().connect(server).await.unwrap();
        Self { client, forbidden }
    }

    /// Whether the broker lets us publish there. What it forbids it says in order, so that a subject that is
    /// forbidden to all tells when it has judged the one before.
    pub async fn may_publish(&self, subject: &str) -> bool {
        self.client.publish(subject.to_owned(), "x".into()).await.unwrap();
        self.judged(subject).await
    }

    /// Whether the broker lets us subscribe there.
    pub async fn may_subscribe(&self, subject: &str) -> bool {
        let subscription = self.client.subscribe(subject.to_owned()).await.unwrap();
        let allowed = self.judged(subject).await;
        drop(subscription);
        allowed
    }

    /// What the broker says of a stream.
    pub async fn stream(&self, name: &str) -> serde_json::Value {
        let reply = self.client.request(format!("$JS.API.STREAM.INFO.{name}"), "".into()).await.unwrap();
        serde_json::from_slice(&reply.payload).unwrap()
    }

    async fn judged(&self, subject: &str) -> bool {
        let fence = format!("forbidden.{}", self.client.new_inbox());
        self.client.publish(fence.clone(), "".into()).await.unwrap();
        self.client.flush().await.unwrap();
        let quoted = |subject: &str| format!("\"{}\"", subject.to_lowercase());
        let waiting = async {
            while !self.forbids(&quoted(&fence)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
        let allowed = !self.forbids(&quoted(subject));
        self.forbidden.lock().unwrap().clear();
        allowed
    }

    fn forbids(&self, quoted: &str) -> bool {
        self.forbidden
            .lock()
            .unwrap()
            .iter()
            .any(|text| text.contains("permissions") && text.contains(quoted))
    }
}
