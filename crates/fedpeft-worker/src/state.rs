//! Local checkpoints: where a client's training stands, on disk, so that a process that is killed or told to stop
//! loses no more than the steps since the last one.
//!
//! Each client has at most one file, named by the digest of the client's name and replaced as a whole. It says
//! which training it belongs to ([`key`]); of any other it is not used. A file is
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | length of the header, little-endian |
//! | ... | the header, in MessagePack |
//! | 4 each | adapter, first and second part of the optimizer's state, as little-endian `f32` |
//! | 32 | SHA-256 of all before |

use std::{
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use fedpeft_protocol::{
    ClientId, Digest,
    round::{Task, Transfer},
};
use fedpeft_runtime::{OptimizerState, Snapshot};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A file of another version belongs to no training.
const VERSION: u32 = 1;
const TRAILER: usize = 32;

/// Identity of one client's training for one task. Whatever its bytes depend on is part of it, so that neither a
/// stale checkpoint nor that of another run, model or partition is taken for it.
pub(crate) fn key(task: &Task, client: &ClientId, data: &Digest) -> Digest {
    let work = rmp_serde::to_vec_named(&task.work).unwrap_or_default();
    let (work, adapter, manifest) = (Digest::of(work), task.adapter.digest(), task.manifest);
    let (run, round, name) = (&task.run, task.round, &task.task);
    let residual =
        task.residual.as_ref().map(|residual| format!(" {}", residual.digest())).unwrap_or_default();
    Digest::of(format!(
        "fedpeft checkpoint/{VERSION} {client} {run} {round} {manifest} {adapter} {work} {data} {name}{residual}"
    ))
}

/// What is kept of a training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Checkpoint {
    /// Where it stands.
    pub snapshot: Snapshot,
    /// Bytes that were fetched for it: they are told with the update, whoever sends it.
    pub fetched: Vec<Transfer>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    key: Digest,
    steps: u64,
    loss: f64,
    weight: f64,
    seconds: f64,
    optimizer_steps: u64,
    fetched: Vec<Transfer>,
    /// Values of the adapter and of the two parts of the optimizer's state.
    values: [u64; 3],
}

/// The folder of checkpoints.
#[derive(Debug, Clone)]
pub(crate) struct StateFolder {
    folder: PathBuf,
    /// Bytes of the largest checkpoint.
    limit: u64,
}

impl StateFolder {
    pub fn new(folder: PathBuf, limit: u64) -> Self {
        Self { folder, limit }
    }

    fn path(&self, client: &ClientId) -> PathBuf {
        self.folder.join(Digest::of(format!("fedpeft client {client}")).to_string())
    }

    /// The checkpoint of this training, if there is one. A damaged file is removed with a warning.
    pub fn load(&self, client: &ClientId, key: &Digest) -> Option<Checkpoint> {
        let path = self.path(client);
        match read(&path, key, self.limit) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%client, %path, %error, "checkpoint cannot be used, training begins anew");
                self.remove(client);
                None
            }
        }
    }

    /// Keeps a checkpoint in the place of the client's last one. What fails is a warning: training goes on.
    pub fn save(&self, client: &ClientId, key: &Digest, checkpoint: &Checkpoint) {
        if let Err(error) = self.write(client, key, checkpoint) {
            tracing::warn!(%client, folder = %self.folder.display(), %error, "checkpoint not written");
        }
    }

    /// Forgets the client's checkpoint: its training is over.
    pub fn remove(&self, client: &ClientId) {
        match fs::remove_file(self.path(client)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%client, folder = %self.folder.display(), %error, "checkpoint not removed");
            }
            _ => {}
        }
    }

    fn write(&self, client: &ClientId, key: &Digest, checkpoint: &Checkpoint) -> io::Result<()> {
        let Checkpoint { snapshot, fetched } = checkpoint;
        let OptimizerState { steps: optimizer_steps, first, second } = &snapshot.optimizer;
        let parts = [&snapshot.adapter, first, second];
        let size: u64 = parts.iter().map(|part| part.len() as u64 * 4).sum();
        if size > self.limit {
            let limit = self.limit >> 20;
            return Err(io::Error::other(format!("it has {size} bytes, --state-mib allows {limit} MiB")));
        }
        let Snapshot { steps, loss, weight, seconds, .. } = *snapshot;
        let (key, fetched, optimizer_steps) = (*key, fetched.clone(), *optimizer_steps);
        let values = parts.map(|part| part.len() as u64);
        let header = Header { key, steps, loss, weight, seconds, optimizer_steps, fetched, values };
        let header = rmp_serde::to_vec_named(&header).map_err(io::Error::other)?;

        fs::create_dir_all(&self.folder)?;
        let temporary = tempfile::Builder::new().prefix(".part-").tempfile_in(&self.folder)?;
        write_parts(temporary.as_file(), &header, parts)?;
        temporary.as_file().sync_all()?;
        temporary.persist(self.path(client)).map_err(|error| error.error)?;
        // The new name is durable once the folder is.
        fs::File::open(&self.folder)?.sync_all()
    }
}

/// Writes the length of the header, the header, the values, and the digest of all that.
fn write_parts(file: &fs::File, header: &[u8], parts: [&Vec<f32>; 3]) -> io::Result<()> {
    let mut out = Hashing { file: BufWriter::new(file), hasher: Sha256::new() };
    out.write_all(&u32::try_from(header.len()).map_err(io::Error::other)?.to_le_bytes())?;
    out.write_all(header)?;
    for part in parts {
        out.write_all(&fedpeft_codec::encode(part))?;
    }
    let digest = out.hasher.finalize();
    out.file.write_all(&digest)?;
    out.file.flush()
}

/// Reads a checkpoint; none where it is of another training.
fn read(path: &Path, key: &Digest, limit: u64) -> io::Result<Option<Checkpoint>> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    // The header is a few kilobytes.
    if fs::metadata(path)?.len() > limit.saturating_add(1 << 20) {
        return Err(damaged("it is too large"));
    }
    let bytes = fs::read(path)?;
    let Some((body, trailer)) = bytes.split_last_chunk::<TRAILER>() else {
        return Err(damaged("it is cut short"));
    };
    if Digest::of(body).as_bytes() != trailer {
        return Err(damaged("its bytes are not those that were written"));
    }
    let header = || {
        let (length, rest) = body.split_first_chunk::<4>()?;
        let (header, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        Some((rmp_serde::from_slice::<Header>(header).ok()?, rest))
    };
    let (header, mut rest) = header().ok_or_else(|| damaged("its header cannot be read"))?;
    if header.key != *key {
        return Ok(None);
    }
    let mut part = |count: u64| {
        let size = usize::try_from(count).ok()?.checked_mul(4)?;
        let (part, after) = rest.split_at_checked(size)?;
        rest = after;
        Some(part.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect::<Vec<_>>())
    };
    let [adapter, first, second] = header.values.map(&mut part);
    let (Some(adapter), Some(first), Some(second), true) = (adapter, first, second, rest.is_empty()) else {
        return Err(damaged("it does not have the values that it declares"));
    };
    let Header { steps, loss, weight, seconds, optimizer_steps, fetched, .. } = header;
    let optimizer = OptimizerState { steps: optimizer_steps, first, second };
    let snapshot = Snapshot { steps, loss, weight, seconds, adapter, optimizer };
    Ok(Some(Checkpoint { snapshot, fetched }))
}

/// Writes to a file and hashes what it writes.
struct Hashing<W> {
    file: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use fedpeft_protocol::round::{ByteKind, Direction, Payload, Work};

    use super::*;

    fn client(name: &str) -> ClientId {
        ClientId::new(name).unwrap()
    }

    fn checkpoint() -> Checkpoint {
        let optimizer = OptimizerState { steps: 3, first: vec![0.5; 7], second: vec![f32::MIN_POSITIVE; 7] };
        let adapter = vec![1.0, -0.0, f32::NAN, f32::INFINITY, 1e-40, 3.0, 0.1];
        let snapshot = Snapshot { steps: 3, loss: 0.1 + 0.2, weight: 24.0, seconds: 1.5, adapter, optimizer };
        let (direction, kind) = (Direction::Down, ByteKind::Backbone);
        let fetched = vec![Transfer { direction, kind, size: 1_000_000, payload: 999_000 }];
        Checkpoint { snapshot, fetched }
    }

    fn folder() -> (StateFolder, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        (StateFolder::new(directory.path().join("state"), 1 << 20), directory)
    }

    /// Bits, for a NaN equals nothing.
    fn bits(checkpoint: &Checkpoint) -> Vec<u32> {
        checkpoint.snapshot.adapter.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let (state, _directory) = folder();
        let (a, b, key) = (client("a"), client("b"), Digest::of("key"));
        assert_eq!(state.load(&a, &key), None);
        state.save(&a, &key, &checkpoint());
        let found = state.load(&a, &key).unwrap();
        assert_eq!(bits(&found), bits(&checkpoint()));
        let adapter = found.snapshot.adapter.clone();
        let want = Snapshot { adapter, ..checkpoint().snapshot };
        assert_eq!(format!("{:?}", found.snapshot), format!("{want:?}"));
        assert_eq!(found.fetched, checkpoint().fetched);
        // Another training, another client.
        assert_eq!(state.load(&a, &Digest::of("other")), None);
        assert_eq!(state.load(&b, &key), None);
        assert!(state.load(&a, &key).is_some());
        state.remove(&a);
        assert_eq!(state.load(&a, &key), None);
    }

    #[test]
    fn a_client_has_one_file_and_no_other_is_left() {
        let (state, _directory) = folder();
        for round in 0..5 {
            state.save(&client("a"), &Digest::of(format!("{round}")), &checkpoint());
            state.save(&client("b"), &Digest::of(format!("{round}")), &checkpoint());
        }
        let names: Vec<String> = fs::read_dir(&state.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.iter().all(|name| name.parse::<Digest>().is_ok()), "{names:?}");
    }

    #[test]
    fn damaged_files_are_not_used_and_go() {
        let (state, _directory) = folder();
        let (a, key) = (client("a"), Digest::of("key"));
        state.save(&a, &key, &checkpoint());
        let whole = fs::read(state.path(&a)).unwrap();
        let cut = [0, 1, 31, 32, 36, whole.len() / 2, whole.len() - 1].map(|length| whole[..length].to_vec());
        let flipped = [0, 10, whole.len() - 40, whole.len() - 1].map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        });
        for bytes in cut.into_iter().chain(flipped) {
            fs::write(state.path(&a), bytes).unwrap();
            assert_eq!(state.load(&a, &key), None);
            assert!(!state.path(&a).exists());
        }
        fs::write(state.path(&a), whole).unwrap();
        assert!(state.load(&a, &key).is_some());
    }

    #[test]
    fn checkpoints_beyond_the_limit_are_not_written() {
        let (mut state, _directory) = folder();
        state.limit = 80;
        let (a, key) = (client("a"), Digest::of("key"));
        state.save(&a, &key, &checkpoint());
        assert_eq!(state.load(&a, &key), None);
        state.limit = 84;
        state.save(&a, &key, &checkpoint());
        assert!(state.load(&a, &key).is_some());
    }

    #[test]
    fn keys_tell_trainings_apart() {
        let task = |change: fn(&mut Task)| {
            let mut task = Task {
                version: 1,
                run: fedpeft_protocol::RunId::new("run").unwrap(),
                round: 1,
                epoch: 1,
                task: "t".into(),
                manifest: Digest::of("m"),
                adapter: Payload::inline(vec![0; 4]),
                work: Work::Train {
                    training: Default::default(),
                    seed: 1,
                    rounds: 1,
                    stability: None,
                    uplink: Default::default(),
                    ranks: false,
                    memory: None,
                    personal: false,
                    secure: None,
                },
                deadline_ms: 0,
                downlink: Default::default(),
                residual: None,
                lifetime_ms: 0,
            };
            change(&mut task);
            task
        };
        let data = Digest::of("data");
        let base = key(&task(|_| ()), &client("a"), &data);
        let changes: [fn(&mut Task); 5] = [
            |task| task.round = 2,
            |task| task.task = "u".into(),
            |task| task.manifest = Digest::of("n"),
            |task| task.adapter = Payload::inline(vec![1; 4]),
            |task| {
                if let Work::Train { training, .. } = &mut task.work {
                    training.learning_rate = 0.5;
                }
            },
        ];
        let mut keys: Vec<Digest> = changes.map(|change| key(&task(change), &client("a"), &data)).into();
        keys.extend([base, key(&task(|_| ()), &client("b"), &data), key(&task(|_| ()), &client("a"), &base)]);
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 8);
        // When it ends is not what it is.
        assert_eq!(base, key(&task(|task| task.deadline_ms = 9), &client("a"), &data));
    }
}
