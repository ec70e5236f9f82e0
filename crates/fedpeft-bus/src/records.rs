//! Records: typed values in key-value buckets, changed by compare-and-set on their revision.

use std::{collections::BTreeMap, marker::PhantomData, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::kv::{self, CreateErrorKind, EntryErrorKind, Operation, UpdateErrorKind},
};
use bytes::Bytes;
use fedpeft_protocol::{
    ClientId, model::ModelVersion, presence::Presence, round::RoundReport, run::RunRecord, subject,
    wire::Format,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Backoff, Bus, BusError,
    follow::{self, Follow},
    newest::{Left, Newest, Stored},
    overflow::Overflow,
};

/// Place of a value in its bucket's history; a compare-and-set names the one it replaces.
pub type Revision = u64;

/// Who runs a run at the moment: the value of the lease bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Name of the process.
    pub owner: String,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<T> {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: T,
    /// Its revision.
    pub revision: Revision,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<T> {
    /// It is now this.
    Put(Entry<T>),
    /// The record at this key was deleted.
    Deleted(String),
}

impl Bus {
    /// State of runs, key `<run>`.
    pub async fn runs(&self) -> Result<Records<RunRecord>, BusError> {
        self.runs_as().await
    }

    /// As [`Self::runs`], of which `T` is a part, to be read: a record with an open round names its whole cohort.
    pub async fn runs_as<T>(&self) -> Result<Records<T>, BusError> {
        self.records(subject::RUN_BUCKET).await
    }

    /// Reports of committed rounds, key `<run>.<round>`.
    pub async fn round_reports(&self) -> Result<Records<RoundReport>, BusError> {
        self.round_reports_with().await
    }

    /// As [`Self::round_reports`], with clients in another form than a list, to be written.
    pub async fn round_reports_with<C>(&self) -> Result<Records<RoundReport<C>>, BusError> {
        self.records(subject::RUN_BUCKET).await
    }

    /// Published models, key `<name>.<version>`.
    pub async fn models(&self) -> Result<Records<ModelVersion>, BusError> {
        self.records(subject::MODEL_BUCKET).await
    }

    /// Present clients, key `<client>`; they vanish [`crate::CLIENT_TTL`] after their last renewal.
    pub async fn clients(&self) -> Result<Records<Presence>, BusError> {
        self.records(subject::CLIENT_BUCKET).await
    }

    /// Ownership of runs, key `<run>`; it vanishes [`crate::LEASE_TTL`] after its last renewal.
    pub async fn leases(&self) -> Result<Records<Lease>, BusError> {
        self.records(subject::LEASE_BUCKET).await
    }

    async fn records<T>(&self, bucket: &'static str) -> Result<Records<T>, BusError> {
        let store = self.js.get_key_value(bucket).await;
        let store = store.map_err(|error| BusError::broker(format!("opening bucket {bucket}"), error))?;
        // Clients write no runs: nobody is led by a stranger to a blob.
        let overflow = (bucket == subject::RUN_BUCKET).then(Overflow::default);
        Ok(Records { bus: self.clone(), bucket, store, overflow, value: PhantomData })
    }
}

/// The records of one type in one bucket.
pub struct Records<T> {
    bus: Bus,
    bucket: &'static str,
    store: kv::Store,
    /// Where records go that are too large, in buckets that have such.
    overflow: Option<Overflow>,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for Records<T> {
    fn clone(&self) -> Self {
        let Self { bus, bucket, store, overflow, .. } = self;
        let (bus, store, overflow) = (bus.clone(), store.clone(), overflow.clone());
        Self { bus, bucket, store, overflow, value: PhantomData }
    }
}

/// Operations that are safe to repeat are repeated this often when the broker does not answer: a broker
/// that restarts takes a few seconds.
const ATTEMPTS: u32 = 8;
/// Values fetched in one request while watching.
const BATCH: usize = 256;

/// Between the attempts: four seconds in all, as a rule.
fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_millis(1500))
}

impl<T: DeserializeOwned> Records<T> {
    /// The value at `key` and its revision.
    pub async fn get(&self, key: &str) -> Result<Option<(T, Revision)>, BusError> {
        let mut backoff = pauses();
        for attempt in 1.. {
            let Some((stored, revision)) = self.stored(key).await? else { break };
            self.note(key, &stored, revision);
            match self.unpacked(key, stored).await {
                Ok(body) => return Ok(Some((self.decode(key, &body)?, revision))),
                // It was replaced, and its blob forgotten, since its place was read.
                Err(BusError::NoBlob { .. }) if attempt < ATTEMPTS => {
                    tokio::time::sleep(backoff.pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The records that [`Self::keys`] names, in that order. Unreadable ones are left out with a warning.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry<T>>, BusError> {
        self.list_as(prefix, |entry| entry).await
    }

    /// What `each` makes of the records of [`Self::list`]: of large or many ones, few are held at a time. A record that is
    /// replaced meanwhile may be made something of twice; the newer counts.
    pub async fn list_as<R>(&self, prefix: &str, each: impl Fn(Entry<T>) -> R) -> Result<Vec<R>, BusError> {
        if self.overflow.is_some() {
            let fetched = self.fetch(prefix, false, |_, stored| Some(stored.payload.clone())).await?;
            return self.readable_all(fetched, each).await;
        }
        let made = self.fetch(prefix, false, |key, stored| match self.decode(key, stored.payload) {
            Ok(value) => Some(each(Entry { key: key.to_owned(), value, revision: stored.sequence })),
            Err(error) => {
                tracing::warn!(%error, "record skipped");
                None
            }
        });
        Ok(made.await?.into_values().filter_map(|left| left.made).collect())
    }

    /// The records whose key is a single token: of the run bucket, the runs without their rounds.
    pub async fn list_top(&self) -> Result<Vec<Entry<T>>, BusError> {
        let filter = format!("{}*", self.store.prefix);
        let fetched = self
            .repeat("*", || self.fetch_once(filter.clone(), false, |_, stored| Some(stored.payload.clone())))
            .await?;
        self.readable_all(fetched, |entry| entry).await
    }

    /// Records as they are and as they change: first every present one that [`Self::keys`] would name, then
    /// each change. A record that expires says nothing.
    pub async fn watch(&self, prefix: &str) -> Result<Watch<T>, BusError> {
        let filter = self.filter(prefix)?;
        let follow =
            Follow::start(&self.bus, self.store.stream_name.clone(), filter, follow::From::LastOfEach, BATCH)
                .await?;
        Ok(Watch { records: self.clone(), follow, found: None })
    }

    async fn readable_all<R>(
        &self,
        fetched: Newest<Option<Bytes>>,
        mut each: impl FnMut(Entry<T>) -> R,
    ) -> Result<Vec<R>, BusError> {
        let mut readable = Vec::with_capacity(fetched.len());
        for (key, Left { sequence, made }) in fetched {
            let Some(stored) = made else { continue };
            readable.extend(self.readable(key.into(), stored, sequence).await?.map(&mut each));
        }
        Ok(readable)
    }

    /// The record that was stored at `key`, or the newer one there; none, if it cannot be read.
    async fn readable(
        &self,
        key: String,
        stored: Bytes,
        revision: Revision,
    ) -> Result<Option<Entry<T>>, BusError> {
        let decoded = match self.unpacked(&key, stored).await {
            Ok(body) => self.decode(&key, &body).map(|value| Some((value, revision))),
            Err(BusError::NoBlob { .. }) => self.get(&key).await,
            Err(error) => Err(error),
        };
        match decoded {
            Ok(found) => Ok(found.map(|(value, revision)| Entry { key, value, revision })),
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                tracing::warn!(%error, "record skipped");
                Ok(None)
            }
        }
    }

    fn decode(&self, key: &str, body: &[u8]) -> Result<T, BusError> {
        let decoded = Format::MessagePack.decode(body);
        decoded.map_err(|error| BusError::wire(format!("record {key} of {}", self.bucket), error))
    }
}

impl Records<Presence> {
    /// What `pick` takes of each client that is present: of ten thousand, a batch is held at a time, and what was picked. A client
    /// that says so anew meanwhile may be picked twice; the newer counts.
    pub async fn pick<R>(
        &self,
        pick: impl Fn(Presence) -> Option<R>,
    ) -> Result<BTreeMap<ClientId, R>, BusError> {
        let picked = self.fetch("", false, |key, stored| match self.decode(key, stored.payload) {
            // Nobody says that another is there.
            Ok(presence) => (presence.client.as_str() == key).then(|| pick(presence)).flatten(),
            Err(error) => {
                tracing::warn!(%error, "record skipped");
                None
            }
        });
        let picked = picked.await?;
        // With room for all of them, the list does not grow by copies.
        let mut list = Vec::with_capacity(picked.len());
        list.extend(
            picked.into_iter().filter_map(|(key, left)| Some((ClientId::new(key).ok()?, left.made?))),
        );
        Ok(list.into_iter().collect())
    }
}

impl<T: Serialize> Records<T> {
    /// Writes a value where there is none; [`BusError::Conflict`] where there is one.
    pub async fn create(&self, key: &str, value: &T) -> Result<Revision, BusError> {
        self.compare_and_set(key, value, None).await
    }

    /// Replaces the value at `revision`; [`BusError::Conflict`] if it is no longer there.
    pub async fn update(&self, key: &str, value: &T, revision: Revision) -> Result<Revision, BusError> {
        self.compare_and_set(key, value, Some(revision)).await
    }

    /// Writes a value whatever was there.
    pub async fn put(&self, key: &str, value: &T) -> Result<Revision, BusError> {
        let body = self.packed(key, value).await?;
        self.repeat(key, || async {
            self.store.put(key, body.clone()).await.map_err(|error| self.broker("writing", key, error))
        })
        .await
    }

    /// Writes a value whatever was there, and says whether that was the value of revision `last`, 0 for none. Reads nothing, and
    /// where the broker's answer is lost it may say no where nobody else wrote.
    pub async fn renew(&self, key: &str, value: &T, last: Revision) -> Result<(Revision, bool), BusError> {
        let body = self.packed(key, value).await?;
        self.repeat(key, || async {
            match self.store.update(key, body.clone(), last).await {
                Ok(revision) => Ok((revision, true)),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    let written = self.store.put(key, body.clone()).await;
                    Ok((written.map_err(|error| self.broker("writing", key, error))?, false))
                }
                Err(error) => Err(self.broker("writing", key, error)),
            }
        })
        .await
    }

    /// When the broker's answer is lost, the record itself tells whether the write took effect: revisions
    /// are unique, so a value equal to ours at a newer revision is ours.
    async fn compare_and_set(
        &self,
        key: &str,
        value: &T,
        expected: Option<Revision>,
    ) -> Result<Revision, BusError> {
        check_key(key)?;
        let body = self.packed(key, value).await?;
        let stored = self.compare_and_store(key, &body, expected).await;
        if let (Some(overflow), Err(BusError::Conflict { .. })) = (&self.overflow, &stored)
            // What is there may be the same.
            && self.stored(key).await?.is_none_or(|(found, _)| found != body)
        {
            overflow.unused(&self.bus, key, &body).await;
        }
        let revision = stored?;
        if let (Some(overflow), Some(before)) = (&self.overflow, expected) {
            overflow.replaced(&self.bus, key, before, &body).await;
        }
        self.note(key, &body, revision);
        Ok(revision)
    }

    /// What is stored for a value.
    async fn packed(&self, key: &str, value: &T) -> Result<Bytes, BusError> {
        let what = format!("record {key} of {}", self.bucket);
        let packed = match &self.overflow {
            Some(overflow) => overflow.packed(&self.bus, &what, key, value).await?,
            None => match Format::MessagePack.encode(value) {
                Ok(body) => Bytes::from(body),
                Err(error) => return Err(BusError::wire(what, error)),
            },
        };
        self.bus.check_size(&what, packed.len())?;
        Ok(packed)
    }
}

impl<T> Records<T> {
    /// The revision of the value at `key`, without reading it.
    pub async fn revision(&self, key: &str) -> Result<Option<Revision>, BusError> {
        let stored = self.stored(key).await?;
        Ok(stored.map(|(stored, revision)| {
            self.note(key, &stored, revision);
            revision
        }))
    }

    /// Removes a value; that there is none is fine.
    pub async fn delete(&self, key: &str) -> Result<(), BusError> {
        check_key(key)?;
        self.repeat(key, || async {
            self.store.delete(key).await.map_err(|error| self.broker("deleting", key, error))
        })
        .await
    }

    /// Keys that begin with the tokens of `prefix` (`run-1` finds `run-1.1`, not `run-10` and not `run-1`
    /// itself), in order; every key where it is empty.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>, BusError> {
        let found = self.fetch(prefix, true, |_, _| Some(())).await?;
        Ok(found.into_iter().filter(|(_, left)| left.made.is_some()).map(|(key, _)| key.into()).collect())
    }

    async fn stored(&self, key: &str) -> Result<Option<(Bytes, Revision)>, BusError> {
        check_key(key)?;
        let entry = self
            .repeat(key, || async {
                self.store.entry(key).await.map_err(|error| match error.kind() {
                    EntryErrorKind::TimedOut => self.timeout("reading", key),
                    _ => self.broker("reading", key, error),
                })
            })
            .await?;
        Ok(entry.filter(|entry| entry.operation == Operation::Put).map(|entry| (entry.value, entry.revision)))
    }

    async fn compare_and_store(
        &self,
        key: &str,
        body: &Bytes,
        expected: Option<Revision>,
    ) -> Result<Revision, BusError> {
        let (mut unanswered, mut backoff) = (None, pauses());
        for _ in 0..ATTEMPTS {
            let error = match self.write_at(key, body, expected).await {
                Ok(revision) => return Ok(revision),
                Err(error) => error,
            };
            if error.is_conflict() && unanswered.is_none() {
                return Err(error);
            }
            match self.stored(key).await? {
                Some((found, revision)) if Some(revision) != expected => {
                    return if found == *body { Ok(revision) } else { Err(self.conflict(key)) };
                }
                _ if error.is_conflict() => return Err(error),
                _ => unanswered = Some(error),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        Err(unanswered.unwrap_or_else(|| self.conflict(key)))
    }

    async fn write_at(
        &self,
        key: &str,
        body: &Bytes,
        expected: Option<Revision>,
    ) -> Result<Revision, BusError> {
        match expected {
            None => self.store.create(key, body.clone()).await.map_err(|error| match error.kind() {
                CreateErrorKind::AlreadyExists => self.conflict(key),
                _ => self.broker("writing", key, error),
            }),
            Some(revision) => {
                self.store.update(key, body.clone(), revision).await.map_err(|error| match error.kind() {
                    UpdateErrorKind::WrongLastRevision => self.conflict(key),
                    _ => self.broker("writing", key, error),
                })
            }
        }
    }

    /// What `make` makes of the values under a prefix as they are stored, by their keys; nothing of what was deleted.
    async fn fetch<R>(
        &self,
        prefix: &str,
        headers_only: bool,
        make: impl Fn(&str, Stored<'_>) -> Option<R>,
    ) -> Result<Newest<Option<R>>, BusError> {
        let filter = self.filter(prefix)?;
        self.repeat(prefix, || self.fetch_once(filter.clone(), headers_only, &make)).await
    }

    async fn fetch_once<R>(
        &self,
        filter: String,
        headers_only: bool,
        make: impl Fn(&str, Stored<'_>) -> Option<R>,
    ) -> Result<Newest<Option<R>>, BusError> {
        let (stream, keys) = (&self.store.stream_name, (self.store.prefix.as_str(), filter));
        let make =
            |key: &str, stored: Stored<'_>| if is_put(stored.headers) { make(key, stored) } else { None };
        self.bus.newest(stream, keys, headers_only, make).await
    }

    fn filter(&self, prefix: &str) -> Result<String, BusError> {
        if prefix.is_empty() {
            return Ok(format!("{}>", self.store.prefix));
        }
        check_key(prefix)?;
        Ok(format!("{}{prefix}.>", self.store.prefix))
    }

    /// The encoded value for which `stored` stands.
    async fn unpacked(&self, key: &str, stored: Bytes) -> Result<Bytes, BusError> {
        match &self.overflow {
            Some(overflow) => overflow.unpacked(&self.bus, key, stored).await,
            None => Ok(stored),
        }
    }

    fn note(&self, key: &str, stored: &[u8], revision: Revision) {
        if let Some(overflow) = &self.overflow {
            overflow.note(key, stored, revision);
        }
    }

    /// Repeats an operation that may be done twice while the broker does not answer.
    async fn repeat<R, F: Future<Output = Result<R, BusError>>>(
        &self,
        key: &str,
        operation: impl Fn() -> F,
    ) -> Result<R, BusError> {
        let mut backoff = pauses();
        for attempt in 1..ATTEMPTS {
            match operation().await {
                Err(error @ (BusError::Broker { .. } | BusError::Timeout { .. })) => {
                    tracing::debug!(%error, key, bucket = self.bucket, attempt, "trying again");
                    tokio::time::sleep(backoff.pause()).await;
                }
                settled => return settled,
            }
        }
        operation().await
    }

    fn conflict(&self, key: &str) -> BusError {
        BusError::Conflict { bucket: self.bucket.into(), key: key.into() }
    }

    fn timeout(&self, doing: &str, key: &str) -> BusError {
        BusError::Timeout { what: format!("{doing} record {key} of {}", self.bucket) }
    }

    fn broker(&self, doing: &str, key: &str, error: impl std::fmt::Display) -> BusError {
        BusError::broker(format!("{doing} record {key} of {}", self.bucket), error)
    }
}

/// Changes of records.
pub struct Watch<T> {
    records: Records<T>,
    follow: Follow,
    /// A record whose blob is being fetched.
    found: Option<(String, Bytes, Revision)>,
}

impl<T: DeserializeOwned> Watch<T> {
    /// The next change. Unreadable records are skipped with a warning. Waits for ever; safe to cancel.
    pub async fn next(&mut self) -> Change<T> {
        loop {
            if let Some((key, stored, revision)) = self.found.clone() {
                let readable = self.records.readable(key, stored, revision).await;
                self.found = None;
                match readable {
                    Ok(Some(entry)) => return Change::Put(entry),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "record skipped"),
                }
            }
            let next = self.follow.next().await;
            let message = &next.message;
            let Some(key) = message.subject.strip_prefix(&self.records.store.prefix) else { continue };
            if !is_put(message.headers.as_ref()) {
                return Change::Deleted(key.to_owned());
            }
            self.found = Some((key.to_owned(), message.payload.clone(), next.sequence));
        }
    }
}

/// Deletions are messages too, told apart by a header.
fn is_put(headers: Option<&HeaderMap>) -> bool {
    !headers.is_some_and(|headers| {
        headers.get("KV-Operation").is_some_and(|operation| operation.as_str() != "PUT")
            || headers.get(async_nats::header::NATS_MARKER_REASON).is_some()
    })
}

fn check_key(key: &str) -> Result<(), BusError> {
    let token = |token: &str| {
        !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    if key.split('.').all(token) {
        Ok(())
    } else {
        Err(BusError::Key { key: key.chars().take(80).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::check_key;

    #[test]
    fn keys_are_tokens_joined_by_dots() {
        for good in ["a", "run-1.12", "A_b"] {
            assert!(check_key(good).is_ok());
        }
        for bad in ["", ".", "a.", ".a", "a..b", "*", "a.>", "a b"] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
    }
}
