//! What travels. Sets are bitmaps, and what is said of many members lies one after the other in the order of their places,
//! so that no name, index or length is repeated for each.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    members::{Member, Members},
    params::{MAX_COHORT, MAX_NAME, Params, Session},
    seal::SEALED,
    sign::{BUNDLE, SIGNATURE},
    words::Words,
};

/// Version of the messages.
pub const VERSION: u16 = 1;
/// Bytes that every message may have beside its body.
const ENVELOPE: usize = 512;

/// The steps of a round. Each is a question of the server to a member and an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Members make keys.
    Advertise,
    /// Members share their secrets among the holders.
    Share,
    /// Members send masked updates.
    Mask,
    /// Members sign who is in the sum.
    Confirm,
    /// Members give the shares that take the masks off.
    Unmask,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Advertise, Self::Share, Self::Mask, Self::Confirm, Self::Unmask];

    /// The one after this.
    pub fn next(self) -> Option<Self> {
        Self::ALL.get(self as usize + 1).copied()
    }
}

/// From a member to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message<'a> {
    /// [`VERSION`] of the sender.
    pub version: u16,
    /// Digest of the parameters.
    #[serde(with = "serde_bytes")]
    pub session: [u8; 32],
    /// Who says it. The transport must know that it is true.
    pub from: Member,
    /// What it says.
    #[serde(borrow)]
    pub answer: Answer<'a>,
}

/// A member's part of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<'a> {
    /// Public keys, signed.
    Keys(#[serde(with = "serde_bytes")] [u8; BUNDLE]),
    /// Secrets, shared.
    Shares {
        /// Binds the member to the seed of the mask it puts on alone.
        #[serde(with = "serde_bytes")]
        commitment: [u8; 32],
        /// For each holder that sent keys, but the member itself: two encrypted shares.
        #[serde(borrow, with = "serde_bytes")]
        sealed: Cow<'a, [u8]>,
    },
    /// The masked update, packed.
    Masked(#[serde(borrow, with = "serde_bytes")] Cow<'a, [u8]>),
    /// Signature of the survivors.
    Confirmed(#[serde(with = "serde_bytes")] [u8; SIGNATURE]),
    /// For each member whose holder this one is, if it shared its secrets: a share of the seed of its own mask if it
    /// survived, and of its mask secret if not.
    Unmasked(#[serde(borrow, with = "serde_bytes")] Cow<'a, [u8]>),
}

/// From the server to a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<'a> {
    /// [`VERSION`] of the sender.
    pub version: u16,
    /// Digest of the parameters.
    #[serde(with = "serde_bytes")]
    pub session: [u8; 32],
    /// What is to be done.
    #[serde(borrow)]
    pub ask: Ask<'a>,
}

/// The server's part of a stage. The first stage needs none but the [`Params`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask<'a> {
    /// Share your secrets.
    Share {
        /// Who sent keys.
        members: Members,
        /// Keys of those of them who are holders of this member's shares, without its own.
        #[serde(borrow, with = "serde_bytes")]
        keys: Cow<'a, [u8]>,
    },
    /// Send your update.
    Mask {
        /// Who shared secrets.
        members: Members,
        /// Encrypted shares from those of them whose holder this member is, without its own.
        #[serde(borrow, with = "serde_bytes")]
        sealed: Cow<'a, [u8]>,
    },
    /// Sign who is in the sum.
    Confirm {
        /// Who sent a masked update.
        members: Members,
    },
    /// Give shares.
    Unmask {
        /// Whose signatures follow.
        members: Members,
        /// Signatures of those of them who are holders of this member's shares, without its own.
        #[serde(borrow, with = "serde_bytes")]
        signatures: Cow<'a, [u8]>,
    },
}

impl Answer<'_> {
    /// The stage to which it belongs.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Keys(_) => Stage::Advertise,
            Self::Shares { .. } => Stage::Share,
            Self::Masked(_) => Stage::Mask,
            Self::Confirmed(_) => Stage::Confirm,
            Self::Unmasked(_) => Stage::Unmask,
        }
    }
}

/// Bytes that are no message of this session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WireError {
    #[error("a message of {got} bytes, where {limit} is the most")]
    Size { got: usize, limit: usize },
    #[error("not a message of secure aggregation: {0}")]
    Format(String),
    #[error("a message of version {0}, and this is version {VERSION}: run the same version on both sides")]
    Version(u16),
    #[error("a message of another session: parameters differ, or it belongs to another round")]
    Session,
    #[error("the cohort has no member {0}")]
    Member(Member),
    #[error("a set of members of a cohort of another size")]
    Members,
    #[error("a message could not be written: {0}")]
    Encode(String),
}

impl<'a> Message<'a> {
    /// Reads an answer to a server of `session`, without copying its body.
    ///
    /// # Errors
    /// [`WireError`] if it is none. Nothing larger than the session's largest message is looked at.
    pub fn decode(bytes: &'a [u8], session: &Session) -> Result<Self, WireError> {
        let message: Self = read(bytes, session)?;
        check(message.version, &message.session, session)?;
        match (message.from as usize) < session.size() {
            true => Ok(message),
            false => Err(WireError::Member(message.from)),
        }
    }

    /// As it travels: MessagePack with named fields.
    ///
    /// # Errors
    /// [`WireError::Encode`] if there is no memory for it.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        rmp_serde::to_vec_named(self).map_err(|error| WireError::Encode(error.to_string()))
    }
}

impl<'a> Request<'a> {
    /// Reads a request to a member of `session`, without copying its body.
    ///
    /// # Errors
    /// As [`Message::decode`].
    pub fn decode(bytes: &'a [u8], session: &Session) -> Result<Self, WireError> {
        let request: Self = read(bytes, session)?;
        check(request.version, &request.session, session)?;
        let (Ask::Share { members, .. }
        | Ask::Mask { members, .. }
        | Ask::Confirm { members }
        | Ask::Unmask { members, .. }) = &request.ask;
        if members.fits(session.size()) { Ok(request) } else { Err(WireError::Members) }
    }

    /// As [`Message::encode`].
    ///
    /// # Errors
    /// As [`Message::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        rmp_serde::to_vec_named(self).map_err(|error| WireError::Encode(error.to_string()))
    }
}

impl Params {
    /// Reads parameters, which [`Session::new`] then checks.
    ///
    /// # Errors
    /// [`WireError`] if they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let limit = ENVELOPE + MAX_COHORT * (MAX_NAME + 64);
        bounded(bytes, limit)?;
        parse::<Self>(bytes)
    }

    /// As [`Message::encode`].
    ///
    /// # Errors
    /// As [`Message::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        rmp_serde::to_vec_named(self).map_err(|error| WireError::Encode(error.to_string()))
    }
}

impl Session {
    /// Bytes of the largest message of this session, either way.
    pub fn largest_message(&self) -> usize {
        let masked = Words::packed_len(self.params().encoding.bits, self.words());
        let each = SEALED.max(BUNDLE).max(SIGNATURE);
        ENVELOPE + self.size().div_ceil(8) + masked.max(each * self.holders_each())
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8], session: &Session) -> Result<T, WireError> {
    bounded(bytes, session.largest_message())?;
    rmp_serde::from_slice(bytes).map_err(|error| WireError::Format(error.to_string()))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    rmp_serde::from_slice(bytes).map_err(|error| WireError::Format(error.to_string()))
}

fn bounded(bytes: &[u8], limit: usize) -> Result<(), WireError> {
    let got = bytes.len();
    if got > limit { Err(WireError::Size { got, limit }) } else { Ok(()) }
}

fn check(version: u16, id: &[u8; 32], session: &Session) -> Result<(), WireError> {
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    if id != session.id() { Err(WireError::Session) } else { Ok(()) }
}
