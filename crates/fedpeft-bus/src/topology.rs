//! The streams and buckets FedPEFT needs. They are created where absent and left alone where present, so
//! that an operator may create them beforehand with other limits, storage or replicas.

use std::time::Duration;

use async_nats::jetstream::{
    context::{AccountErrorKind, GetStreamErrorKind},
    kv, stream,
};
use fedpeft_protocol::subject;

use crate::{Bus, BusError};

/// A client that has not renewed its presence for this long is gone.
pub const CLIENT_TTL: Duration = Duration::from_secs(15);
/// An owner that has not renewed its lease for this long has lost its run.
pub const LEASE_TTL: Duration = Duration::from_secs(10);

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A client may repeat a publish for this long without being counted twice.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(10 * 60);
/// Updates and tasks of runs that nobody continues go away by themselves.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most bytes of client uploads at once: the updates of a hundred clients that fine-tune all of a ViT-B.
const UPLOADS: i64 = 32 << 30;
const EVENTS_KEPT: i64 = 1_000_000;
/// Most readers of a stream at once: one for each client in the stream of tasks. nats-server 2.15 allows a thousand where a
/// stream does not say.
const READERS: i32 = 100_000;
/// Largest record of a client or a lease: what a client says of itself is some hundred bytes.
const SMALL_RECORD: i32 = 32 << 10;
/// Most updates of one client for one round. It answers once, again if its connection broke; whoever floods the
/// stream is refused, and what it sent first stays.
const ANSWERS: i64 = 64;

impl Bus {
    /// Creates what is absent. Any number of programs may do so at once. Credentials of clients and of the
    /// exporter allow to look only: what they need must be there.
    pub async fn ensure_topology(&self) -> Result<(), BusError> {
        if let Some(identity) = self.identity.as_ref().filter(|identity| !identity.makes_streams()) {
            return self.require_topology(identity.is_client()).await;
        }
        self.require_jetstream().await?;
        for config in streams() {
            let name = config.name.clone();
            if self.absent(&name).await? {
                Box::pin(self.create(config)).await?;
            }
        }
        const UNLIMITED: i32 = -1;
        for (bucket, max_age, max_value_size) in [
            (subject::MODEL_BUCKET, Duration::ZERO, UNLIMITED),
            (subject::RUN_BUCKET, Duration::ZERO, UNLIMITED),
            (subject::LEASE_BUCKET, LEASE_TTL, SMALL_RECORD),
        ] {
            let name = format!("KV_{bucket}");
            if self.absent(&name).await? {
                let bucket = bucket.to_owned();
                let config = kv::Config { bucket, history: 1, max_age, max_value_size, ..Default::default() };
                self.settle(&name, self.js.create_key_value(config).await).await?;
            }
        }
        let config = blobs();
        if self.absent(&config.name).await? {
            Box::pin(self.create(config)).await?;
        }
        let config = uploads();
        if self.absent(&config.name).await? {
            let mut created = Box::pin(self.js.create_stream(config.clone())).await;
            if created.is_err() {
                // A broker with less room than that limits the store by itself.
                let config = stream::Config { max_bytes: 0, max_consumers: 0, ..config.clone() };
                created = Box::pin(self.js.create_stream(config)).await;
            }
            self.settle(&config.name, created).await?;
        }
        self.check_tasks().await?;
        if !self.absent(subject::FORMER_TASK_STREAM).await? {
            tracing::warn!(
                "stream {former} is that of an earlier FedPEFT: workers of that version get no tasks from this one; once all are \
                 upgraded, remove it with `nats stream rm {former}`",
                former = subject::FORMER_TASK_STREAM
            );
        }
        Ok(())
    }

    /// Makes sure that clients hear of their tasks, whoever made the stream.
    async fn check_tasks(&self) -> Result<(), BusError> {
        let stream = subject::TASK_STREAM;
        let found = self.js.get_stream(stream).await;
        let found = found.map_err(|error| BusError::broker(format!("looking up stream {stream}"), error))?;
        let config = &found.cached_info().config;
        let hinted = config.republish.as_ref().is_some_and(|to| to.destination == hints());
        let reason = match (config.allow_direct, hinted) {
            (true, true) => return Ok(()),
            (false, _) => "it does not allow direct gets",
            (true, false) => "it does not republish to fedpeft.v1.hint.$1.$2",
        };
        Err(BusError::UnfitStream { stream: stream.into(), reason })
    }

    /// Creates a stream; in an account that may not have so many readers, with as many as it may have.
    async fn create(&self, config: stream::Config) -> Result<(), BusError> {
        let name = config.name.clone();
        let mut created = Box::pin(self.js.create_stream(config.clone())).await;
        if created.is_err() && config.max_consumers != 0 {
            created = self.js.create_stream(stream::Config { max_consumers: 0, ..config }).await;
        }
        self.settle(&name, created).await
    }

    async fn require_topology(&self, client: bool) -> Result<(), BusError> {
        let needed = if client {
            let blobs = format!("OBJ_{}", subject::BLOB_BUCKET);
            vec![subject::TASK_STREAM.to_owned(), presence().name, blobs, uploads().name]
        } else {
            vec![subject::EVENT_STREAM.to_owned()]
        };
        for stream in needed {
            if self.absent(&stream).await? {
                return Err(BusError::NoTopology { stream });
            }
        }
        if client { self.check_tasks().await } else { Ok(()) }
    }

    async fn require_jetstream(&self) -> Result<(), BusError> {
        let Err(error) = self.js.query_account().await else { return Ok(()) };
        let what = "querying JetStream";
        match error.kind() {
            AccountErrorKind::JetStreamUnavailable | AccountErrorKind::JetStream(_) => {
                Err(BusError::NoJetStream { server: self.server.to_string() })
            }
            AccountErrorKind::TimedOut => Err(BusError::Timeout { what: what.into() }),
            AccountErrorKind::Other => Err(BusError::broker(what, error)),
        }
    }

    async fn absent(&self, stream: &str) -> Result<bool, BusError> {
        let found = tokio::select! {
            found = self.js.get_stream(stream) => found,
            () = self.forbids(&format!("{}.STREAM.INFO.{stream}", self.api())) => {
                return Err(BusError::Forbidden { what: format!("looking up stream {stream}") });
            }
        };
        let Err(error) = found else { return Ok(false) };
        match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.code() == 404 => Ok(true),
            _ => Err(BusError::broker(format!("looking up stream {stream}"), error)),
        }
    }

    /// Creation that failed because another program was faster has succeeded.
    async fn settle<T, E: std::fmt::Display>(
        &self,
        stream: &str,
        created: Result<T, E>,
    ) -> Result<(), BusError> {
        match created {
            Ok(_) => Ok(()),
            Err(_) if matches!(self.absent(stream).await, Ok(false)) => Ok(()),
            Err(error) => Err(BusError::broker(format!("creating stream {stream}"), error)),
        }
    }
}

/// The bucket of present clients. Clients write it themselves: unlike other buckets it takes no rollups, for a
/// rollup by one client could remove the presence of all.
fn presence() -> stream::Config {
    stream::Config {
        name: format!("KV_{}", subject::CLIENT_BUCKET),
        subjects: vec![format!("$KV.{}.>", subject::CLIENT_BUCKET)],
        description: Some("FedPEFT: present clients".into()),
        max_messages_per_subject: 1,
        max_age: CLIENT_TTL,
        max_message_size: SMALL_RECORD,
        discard: stream::DiscardPolicy::New,
        allow_direct: true,
        deny_delete: true,
        ..Default::default()
    }
}

/// The object store of blobs, as every NATS object store is, but for more readers.
fn blobs() -> stream::Config {
    let bucket = subject::BLOB_BUCKET;
    stream::Config {
        name: format!("OBJ_{bucket}"),
        subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
        description: Some("FedPEFT: models, artifacts, adapters".into()),
        max_consumers: READERS,
        discard: stream::DiscardPolicy::New,
        allow_rollup: true,
        allow_direct: true,
        ..Default::default()
    }
}

/// The object store of uploads. Clients write it themselves: it takes no rollups either.
fn uploads() -> stream::Config {
    let bucket = subject::UPLOAD_BUCKET;
    stream::Config {
        name: format!("OBJ_{bucket}"),
        subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
        description: Some("FedPEFT: what clients upload".into()),
        max_age: ABANDONED,
        max_bytes: UPLOADS,
        max_consumers: READERS,
        discard: stream::DiscardPolicy::New,
        allow_direct: true,
        ..Default::default()
    }
}

/// Where hints go, by the wildcards of [`subject::TASK_SUBJECTS`].
fn hints() -> String {
    subject::HINT_SUBJECTS.replacen('*', "$1", 1).replacen('*', "$2", 1)
}

fn streams() -> [stream::Config; 4] {
    let base = |name: &str, subjects: &str, description: &str| stream::Config {
        name: name.into(),
        subjects: vec![subjects.into()],
        description: Some(description.into()),
        duplicate_window: DUPLICATE_WINDOW,
        ..Default::default()
    };
    [
        stream::Config {
            // A newer task of one run replaces the older one: no client works on the past.
            max_messages_per_subject: 1,
            max_age: ABANDONED,
            max_consumers: READERS,
            allow_direct: true,
            // What a client waits for: it costs the broker less than a consumer for each of many.
            republish: Some(stream::Republish {
                source: subject::TASK_SUBJECTS.into(),
                destination: hints(),
                headers_only: true,
            }),
            ..base(subject::TASK_STREAM, subject::TASK_SUBJECTS, "FedPEFT: tasks waiting for clients")
        },
        stream::Config {
            max_age: ABANDONED,
            max_messages_per_subject: ANSWERS,
            discard: stream::DiscardPolicy::New,
            discard_new_per_subject: true,
            ..base(
                subject::UPDATE_STREAM,
                subject::UPDATE_SUBJECTS,
                "FedPEFT: updates waiting for the aggregator",
            )
        },
        stream::Config {
            max_age: 90 * DAY,
            max_messages: EVENTS_KEPT,
            ..base(subject::EVENT_STREAM, subject::EVENT_SUBJECTS, "FedPEFT: what happened in runs")
        },
        presence(),
    ]
}
