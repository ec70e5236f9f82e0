//! The names of NATS subjects, streams, buckets and headers. Nothing else in the workspace spells them.

use crate::{ClientId, Round, RunId};

/// Everything FedPEFT says lies under this prefix.
pub const PREFIX: &str = "fedpeft.v1";
/// The control API's subjects begin with this.
pub const API: &str = "fedpeft.v1.api";

/// Stream of tasks that clients are at, or will be. The client stands before the run: a client's tasks are found by the
/// beginning of their subjects, and one task by its whole subject.
pub const TASK_STREAM: &str = "FEDPEFT_OPEN_TASKS";
/// Subjects of [`TASK_STREAM`].
pub const TASK_SUBJECTS: &str = "fedpeft.v1.task.*.*";
/// Where the broker says that it has stored a task, without its body: that of [`TASK_SUBJECTS`] with the same last tokens.
/// Hints are not stored, may be lost and prove nothing: the task is in the stream.
pub const HINT_SUBJECTS: &str = "fedpeft.v1.hint.*.*";
/// Stream of tasks in brokers that an earlier FedPEFT has used, where each client had a consumer. Nothing reads it any more.
pub const FORMER_TASK_STREAM: &str = "FEDPEFT_TASKS";
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
    format!("{PREFIX}.task.{client}.{run}")
}

/// Tasks of a client, of every run.
pub fn tasks_of(client: &ClientId) -> String {
    format!("{PREFIX}.task.{client}.*")
}

/// Every task of a run.
pub fn tasks_of_run(run: &RunId) -> String {
    format!("{PREFIX}.task.*.{run}")
}

/// What [`task`] encoded.
pub fn parse_task(subject: &str) -> Option<(RunId, ClientId)> {
    let rest = subject.strip_prefix(PREFIX)?.strip_prefix(".task.")?;
    let (client, run) = rest.split_once('.')?;
    Some((RunId::new(run).ok()?, ClientId::new(client).ok()?))
}

/// What a client subscribes to: hints at its tasks of every run.
pub fn hints_of(client: &ClientId) -> String {
    format!("{PREFIX}.hint.{client}.*")
}

/// The run that a hint is about.
pub fn parse_hint(subject: &str) -> Option<RunId> {
    let rest = subject.strip_prefix(PREFIX)?.strip_prefix(".hint.")?;
    RunId::new(rest.split_once('.')?.1).ok()
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
        for bad in ["fedpeft.v1.task.c", "fedpeft.v1.task.c.r1.x", "fedpeft.v1.hint.c.r1", "x"] {
            assert_eq!(parse_task(bad), None, "{bad}");
        }
        assert_eq!(parse_hint("fedpeft.v1.hint.c-1.r1"), Some(RunId::new("r1").unwrap()));
        assert!(
            parse_hint("fedpeft.v1.hint.c-1").is_none() && parse_hint("fedpeft.v1.task.c-1.r1").is_none()
        );
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
