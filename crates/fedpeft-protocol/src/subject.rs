//! The names of NATS subjects, streams, buckets and headers. Nothing else in the workspace spells them.

use crate::{ClientId, Round, RunId};

/// Everything FedPEFT says lies under this prefix.
pub const PREFIX: &str = "fedpeft.v1";
/// The control API's subjects begin with this.
pub const API: &str = "fedpeft.v1.api";

/// Stream of tasks waiting for clients.
pub const TASK_STREAM: &str = "FEDPEFT_TASKS";
/// Subjects of [`TASK_STREAM`].
pub const TASK_SUBJECTS: &str = "fedpeft.v1.run.*.client.*.task";
/// Stream of updates waiting for the aggregator.
pub const UPDATE_STREAM: &str = "FEDPEFT_UPDATES";
/// Subjects of [`UPDATE_STREAM`].
pub const UPDATE_SUBJECTS: &str = "fedpeft.v1.update.*.*.*";
/// Stream of events.
pub const EVENT_STREAM: &str = "FEDPEFT_EVENTS";
/// Subjects of [`EVENT_STREAM`].
pub const EVENT_SUBJECTS: &str = "fedpeft.v1.event.>";

/// Object store of content-addressed blobs.
pub const BLOB_BUCKET: &str = "fedpeft-blobs";
/// Object store of client uploads that do not fit a message. Unlike in other object stores, the last two tokens of
/// the subjects of chunks and metadata are the client and the upload: `$O.fedpeft-uploads.C.<client>.<upload>` and
/// `$O.fedpeft-uploads.M.<client>.<upload>`. So permissions can limit a client to its own uploads.
pub const UPLOAD_BUCKET: &str = "fedpeft-uploads";
/// KV of published models and their versions.
pub const MODEL_BUCKET: &str = "fedpeft-models";
/// KV of run records and round records.
pub const RUN_BUCKET: &str = "fedpeft-runs";
/// KV (with a time to live) of run ownership.
pub const LEASE_BUCKET: &str = "fedpeft-leases";
/// KV (with a time to live) of present clients.
pub const CLIENT_BUCKET: &str = "fedpeft-clients";

/// How clients with credentials of their own see JetStream: under this prefix instead of `$JS.API`, and of it
/// only what they need.
pub const CLIENT_API: &str = "fedpeft.v1.js";

/// Header naming the encoding of a message's body, see [`crate::wire::Format`].
pub const CONTENT_TYPE: &str = "Content-Type";
/// Header of a chunk in an object store: the offset of its first byte in the blob, a space, and the SHA-256 of the
/// blob up to its last byte.
pub const CHUNK_HEADER: &str = "Fedpeft-Chunk";
/// Header with the protocol version of the sender.
pub const VERSION_HEADER: &str = "Fedpeft-Version";

/// Where a client finds its task of a run.
pub fn task(run: &RunId, client: &ClientId) -> String {
    format!("{PREFIX}.run.{run}.client.{client}.task")
}

/// What a client subscribes to: its tasks of every run.
pub fn tasks_of(client: &ClientId) -> String {
    format!("{PREFIX}.run.*.client.{client}.task")
}

/// Every task of a run.
pub fn tasks_of_run(run: &RunId) -> String {
    format!("{PREFIX}.run.{run}.client.*.task")
}

/// What [`task`] encoded.
pub fn parse_task(subject: &str) -> Option<(RunId, ClientId)> {
    let rest = subject.strip_prefix(PREFIX)?.strip_prefix(".run.")?;
    let (run, rest) = rest.split_once(".client.")?;
    Some((RunId::new(run).ok()?, ClientId::new(rest.strip_suffix(".task")?).ok()?))
}

/// Where a client publishes its update for a round.
pub fn update(run: &RunId, round: Round, client: &ClientId) -> String {
    format!("{PREFIX}.update.{run}.{round}.{client}")
}

/// Every update of a run.
pub fn updates_of(run: &RunId) -> String {
    format!("{PREFIX}.update.{run}.*.*")
}

/// Every update of one round of a run.
pub fn updates_of_round(run: &RunId, round: Round) -> String {
    format!("{PREFIX}.update.{run}.{round}.*")
}

/// Where events of a run are published; `kind` is [`crate::event::EventKind::name`].
pub fn event(run: &RunId, kind: &str) -> String {
    format!("{PREFIX}.event.{run}.{kind}")
}

/// Every event of a run.
pub fn events_of(run: &RunId) -> String {
    format!("{PREFIX}.event.{run}.*")
}

/// What [`update`] encoded: run, round and client of an update, taken from its subject, which the broker's
/// permissions guard, and never from its body.
pub fn parse_update(subject: &str) -> Option<(RunId, Round, ClientId)> {
    let rest = subject.strip_prefix(PREFIX)?.strip_prefix(".update.")?;
    let mut tokens = rest.split('.');
    let parsed =
        (RunId::new(tokens.next()?).ok()?, tokens.next()?.parse().ok()?, ClientId::new(tokens.next()?).ok()?);
    tokens.next().is_none().then_some(parsed)
}

/// Deduplication id (`Nats-Msg-Id`) of an update: a second publish of the same one is dropped by the broker.
pub fn update_id(run: &RunId, round: Round, client: &ClientId) -> String {
    format!("{run}/{round}/{client}")
}

/// Deduplication id of a task. The epoch is part of it: a new owner may re-issue the round's tasks.
pub fn task_id(run: &RunId, round: Round, client: &ClientId, kind: &str, epoch: u64) -> String {
    format!("{run}/{round}/{client}/{kind}/{epoch}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_subjects_round_trip_and_strangers_are_refused() {
        let (run, client) = (RunId::new("r1").unwrap(), ClientId::new("c-1").unwrap());
        assert_eq!(parse_task(&task(&run, &client)), Some((run, client)));
        for bad in ["fedpeft.v1.run.r1.client.c.x", "fedpeft.v1.run.r1.client.c.client.d.task", "x"] {
            assert_eq!(parse_task(bad), None, "{bad}");
        }
    }

    #[test]
    fn update_subjects_round_trip_and_strangers_are_refused() {
        let (run, client) = (RunId::new("r1").unwrap(), ClientId::new("c-1").unwrap());
        let subject = update(&run, 7, &client);
        assert_eq!(parse_update(&subject), Some((run, 7, client)));
        for bad in ["fedpeft.v1.update.r1.7", "fedpeft.v1.update.r1.7.c.x", "fedpeft.v2.update.r1.7.c", "x"] {
            assert_eq!(parse_update(bad), None, "{bad}");
        }
    }
}
