//! Where a blob lies in its object store, what its metadata says, and who may write it.
//!
//! The metadata subject of a blob holds one message: nothing, a *claim*, or the metadata of a whole blob. It is
//! replaced by compare-and-set on its sequence only (of an upload, the last message counts: the store of uploads takes
//! no rollups, for one by one client could remove what all others sent). Every chunk is sent on condition that the writer's claim is
//! still the last message there, so a chunk of a writer that was replaced is refused by the broker, however late
//! it comes: of several writers of one blob at most one writes at any time, and chunks never mix.

use std::collections::BTreeMap;

use async_nats::{
    HeaderMap,
    header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_ROLLUP},
    jetstream::{
        Error, ErrorCode,
        context::{PublishError, PublishErrorKind},
        stream::{DirectGetErrorKind, Stream},
    },
};
use base64::{
    Engine,
    engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD},
};
use fedpeft_protocol::{Digest, subject};
use serde::{Deserialize, Serialize};

use super::{CHUNK, uploads::UploadKey};
use crate::{Bus, BusError, Measured};

/// Subject whose last sequence the broker compares instead of that of the message (nats-server 2.11).
pub(super) const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// Subjects and names of one blob.
pub(super) struct Place {
    pub digest: Digest,
    /// Whether several programs may want to write it; an upload has its client only.
    pub shared: bool,
    /// Subject of its chunks.
    pub chunks: String,
    bucket: &'static str,
    name: String,
    nuid: String,
    meta: String,
}

impl Place {
    /// In the store that everybody reads, where `nats object get` finds it by its digest.
    pub fn blob(digest: &Digest) -> Self {
        let (bucket, name) = (subject::BLOB_BUCKET, digest.to_string());
        let nuid = URL_SAFE_NO_PAD.encode(digest.as_bytes());
        let meta = format!("$O.{bucket}.M.{}", URL_SAFE.encode(&name));
        Self { digest: *digest, shared: true, chunks: chunk_subject(bucket, &nuid), bucket, name, nuid, meta }
    }

    /// Among the uploads of a client. Run and round are part of its name: equal updates of two runs are two uploads.
    pub fn upload(key: UploadKey<'_>, digest: &Digest) -> Self {
        let (bucket, nuid) = (subject::UPLOAD_BUCKET, key.token(digest));
        let name = format!("{}/{}/{}/{digest}", key.run, key.round, key.client);
        let meta = format!("$O.{bucket}.M.{nuid}");
        Self {
            digest: *digest,
            shared: false,
            chunks: chunk_subject(bucket, &nuid),
            bucket,
            name,
            nuid,
            meta,
        }
    }

    /// The stream behind the object store.
    pub fn stream(&self) -> String {
        format!("OBJ_{}", self.bucket)
    }

    /// Conditions under which the broker takes a message of the writer whose claim has sequence `claim`.
    pub fn fence(&self, claim: u64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, claim.to_string());
        headers.insert(EXPECTED_SUBJECT, self.meta.as_str());
        headers
    }
}

fn chunk_subject(bucket: &str, nuid: &str) -> String {
    format!("$O.{bucket}.C.{nuid}")
}

/// The last message of the metadata subject.
pub(super) struct Head {
    /// Its sequence; 0 if there never was one.
    pub sequence: u64,
    /// Chunks up to this sequence belong to a blob that was deleted.
    pub floor: u64,
    pub found: Found,
}

pub(super) enum Found {
    /// No blob, or one that was deleted.
    Nothing,
    /// Somebody is writing it, or was.
    Claim { owner: String },
    /// It is there.
    Whole(Whole),
}

/// A whole blob, as its metadata says.
pub(super) struct Whole {
    pub size: u64,
    /// Subject of its chunks: another program may have stored it under a token of its own.
    pub chunks: String,
}

/// The metadata of NATS object stores, as far as we use it.
#[derive(Serialize, Deserialize)]
struct Meta {
    name: String,
    bucket: String,
    nuid: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    chunks: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    options: Option<serde_json::Value>,
    #[serde(default)]
    deleted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, String>>,
}

const OWNER: &str = "owner";
const FLOOR: &str = "floor";

/// What is known of a blob.
pub(super) async fn look_up(bus: &Bus, place: &Place) -> Result<Head, BusError> {
    let stream = open(bus, place).await?;
    let message = match stream.direct_get_last_for_subject(place.meta.as_str()).await {
        Ok(message) => message,
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => {
            return Ok(Head { sequence: 0, floor: 0, found: Found::Nothing });
        }
        Err(error) if error.kind() == DirectGetErrorKind::TimedOut => {
            return Err(BusError::Timeout { what: format!("looking up blob {}", place.digest) });
        }
        Err(error) => return Err(BusError::broker(format!("looking up blob {}", place.digest), error)),
    };
    let sequence = message.sequence;
    let nothing = Head { sequence, floor: sequence, found: Found::Nothing };
    let Ok(meta) = serde_json::from_slice::<Meta>(&message.payload) else { return Ok(nothing) };
    let noted = |key: &str| meta.metadata.as_ref().and_then(|notes| notes.get(key));
    let floor = noted(FLOOR).and_then(|text| text.parse().ok()).unwrap_or(0);
    let found = match (meta.deleted, noted(OWNER)) {
        (true, None) => return Ok(nothing),
        (true, Some(owner)) => Found::Claim { owner: owner.clone() },
        (false, _) => {
            let known = meta.nuid == place.nuid;
            let token = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            if !(known || place.shared && !meta.nuid.is_empty() && meta.nuid.bytes().all(token)) {
                return Ok(nothing);
            }
            Found::Whole(Whole { size: meta.size, chunks: chunk_subject(place.bucket, &meta.nuid) })
        }
    };
    Ok(Head { sequence, floor, found })
}

/// Makes `owner` the writer, if the metadata is still that of `head`. The sequence of the claim, or nothing if
/// somebody was faster.
pub(super) async fn claim(
    bus: &Bus,
    place: &Place,
    head: &Head,
    owner: &str,
    measured: &mut Measured,
) -> Result<Option<u64>, BusError> {
    let notes = [(OWNER, owner.to_owned()), (FLOOR, head.floor.to_string())];
    write(bus, place, meta(place, true, &notes), head.sequence, measured).await
}

/// Makes the blob visible, if `claim` is still the last one. Says whether it was.
pub(super) async fn commit(
    bus: &Bus,
    place: &Place,
    (claim, floor): (u64, u64),
    (size, chunks): (u64, u64),
    measured: &mut Measured,
) -> Result<bool, BusError> {
    let whole = Meta {
        size,
        chunks,
        digest: Some(format!("SHA-256={}", URL_SAFE.encode(place.digest.as_bytes()))),
        options: Some(serde_json::json!({"max_chunk_size": CHUNK})),
        ..meta(place, false, &[(FLOOR, floor.to_string())])
    };
    Ok(write(bus, place, whole, claim, measured).await?.is_some())
}

/// Deletes what is stored, if the metadata still has sequence `last`. Chunks of a later writer stay.
pub(super) async fn forget(bus: &Bus, place: &Place, chunks: &str, last: u64) -> Result<(), BusError> {
    let mut unmeasured = Measured::default();
    let gone = write(bus, place, meta(place, true, &[]), last, &mut unmeasured).await?;
    let Some(gone) = gone else { return Ok(()) };
    let purging = open(bus, place).await?.purge().sequence(gone).filter(chunks).await;
    purging.map(drop).map_err(|error| BusError::broker(format!("deleting blob {}", place.digest), error))
}

fn meta(place: &Place, deleted: bool, notes: &[(&str, String)]) -> Meta {
    let notes: BTreeMap<_, _> = notes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Meta {
        name: place.name.clone(),
        bucket: place.bucket.into(),
        nuid: place.nuid.clone(),
        size: 0,
        chunks: 0,
        digest: None,
        options: None,
        deleted,
        metadata: (!notes.is_empty()).then_some(notes),
    }
}

/// Replaces the metadata if it still has sequence `last`; its new sequence, or nothing if it has not.
async fn write(
    bus: &Bus,
    place: &Place,
    meta: Meta,
    last: u64,
    measured: &mut Measured,
) -> Result<Option<u64>, BusError> {
    let body = serde_json::to_vec(&meta).map_err(|error| failure(place, error))?;
    let mut headers = HeaderMap::new();
    if place.shared {
        headers.insert(NATS_ROLLUP, "sub");
    }
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.to_string());
    *measured += Measured::of(&place.meta, Some(&headers), body.len());
    let acknowledged = match bus.js.publish_with_headers(place.meta.clone(), headers, body.into()).await {
        Ok(ack) => ack.await,
        Err(error) => Err(error),
    };
    match acknowledged {
        Ok(ack) => Ok(Some(ack.sequence)),
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
        Err(error) => Err(refusal(place, &error)),
    }
}

/// The stream behind the object store, without asking the broker for it.
pub(super) async fn open(bus: &Bus, place: &Place) -> Result<Stream<()>, BusError> {
    let stream = bus.js.get_stream_no_info(place.stream()).await;
    stream.map_err(|error| BusError::broker(format!("opening the store of blob {}", place.digest), error))
}

/// A publish that failed.
pub(super) fn refusal(place: &Place, error: &PublishError) -> BusError {
    let what = format!("storing blob {}", place.digest);
    let source = std::error::Error::source(error);
    match (error.kind(), source.and_then(|source| source.downcast_ref::<Error>())) {
        (PublishErrorKind::TimedOut, _) => BusError::Timeout { what },
        (_, Some(refused)) if is_full(refused) => BusError::StoreFull { what, reason: refused.to_string() },
        (_, Some(refused)) => BusError::broker(what, refused),
        _ => BusError::broker(what, error),
    }
}

fn is_full(error: &Error) -> bool {
    [
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        // "maximum bytes exceeded", or the text of the operating system, such as "no space left on device".
        ErrorCode::STREAM_STORE_FAILED,
    ]
    .contains(&error.error_code())
}

pub(super) fn failure(place: &Place, error: impl std::fmt::Display) -> BusError {
    BusError::broker(format!("storing blob {}", place.digest), error)
}
