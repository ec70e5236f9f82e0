//! The server's side: a fold over messages.
//!
//! A server is what it has been told, and nothing else: [`Server::take`] folds an answer, [`Server::close`] ends a stage with
//! those who have answered, and returns this decision. A server that starts again from the decisions
//! ([`Server::restore`]) and the same answers, in any order, is the same server and makes the same requests and sum. There
//! is no clock: when to close a stage is the caller's to say.

mod error;
mod request;
mod unmask;

use sha2::{Digest, Sha256};

pub use error::ServerError;

use crate::{
    members::{Member, Members},
    message::{Answer, Message, Stage, VERSION},
    params::Session,
    seal::SEALED,
    sign::{PublicKeys, SIGNATURE, survivors_text, verify},
    words::Words,
};

/// The end of a stage: who took part. It must be durable before anybody is asked for the next stage.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Closed {
    /// Which.
    pub stage: Stage,
    /// Who answered in time.
    pub members: Members,
}

/// Whether a message changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It did.
    New,
    /// It was there already, byte for byte.
    Repeated,
}

/// The server of one session. It holds 116 bytes for each holder of each member's shares, which is much in a complete graph;
/// beside that, one vector of the update's size, whatever the number of members.
pub struct Server {
    session: Session,
    pub(crate) closed: Vec<Members>,
    pub(crate) members: Vec<Record>,
    pub(crate) sum: Words,
}

/// What a member has said.
#[derive(Clone, Default)]
pub(crate) struct Record {
    /// Digests of its answers, to tell repetitions from contradictions.
    answers: [Option<[u8; 32]>; Stage::ALL.len()],
    pub(crate) keys: Option<PublicKeys>,
    pub(crate) commitment: [u8; 32],
    /// Shares that others have sent to it, in the order of their arrival.
    inbox: Vec<(Member, [u8; SEALED])>,
    signature: Option<[u8; SIGNATURE]>,
    pub(crate) shares: Vec<[u8; 32]>,
}

impl Server {
    /// A server that has heard nothing.
    pub fn new(session: Session) -> Self {
        let sum = Words::zeros(session.params().encoding.bits, session.words());
        Self { members: vec![Record::default(); session.size()], closed: Vec::new(), sum, session }
    }

    /// The stage that is open; none when all are closed and the sum can be had.
    pub fn stage(&self) -> Option<Stage> {
        Stage::ALL.get(self.closed.len()).copied()
    }

    /// Who is asked in `stage`; nobody while the one before is open.
    pub fn asked(&self, stage: Stage) -> Members {
        match (stage as usize).checked_sub(1) {
            None => Members::of(self.session.size(), 0..self.session.size() as Member),
            Some(before) => {
                self.closed.get(before).cloned().unwrap_or_else(|| Members::none(self.session.size()))
            }
        }
    }

    /// Who has answered in `stage`.
    pub fn answered(&self, stage: Stage) -> Members {
        let answered = |(member, record): (usize, &Record)| {
            record.answers[stage as usize].is_some().then_some(member as Member)
        };
        Members::of(self.session.size(), self.members.iter().enumerate().filter_map(answered))
    }

    /// Ends the open stage with those who have answered.
    ///
    /// # Errors
    /// [`ServerError::TooFew`] if they are too few to go on: wait, or give the round up. [`ServerError::Over`] if no stage
    /// is open.
    pub fn close(&mut self) -> Result<Closed, ServerError> {
        let stage = self.stage().ok_or(ServerError::Over)?;
        self.complete()?;
        let members = self.answered(stage);
        let need = if stage <= Stage::Mask { self.session.quorum() } else { self.session.threshold() };
        let have = members.len();
        if have < need {
            return Err(ServerError::TooFew { stage, have, need });
        }
        self.closed.push(members.clone());
        Ok(Closed { stage, members })
    }

    /// Ends the open stage as it was ended before.
    ///
    /// # Errors
    /// [`ServerError::Restore`] if this is not the end of the open stage.
    pub fn restore(&mut self, closed: &Closed) -> Result<(), ServerError> {
        let Closed { stage, members } = closed;
        let follows = self.stage() == Some(*stage)
            && members.fits(self.session.size())
            && members.within(&self.asked(*stage))
            && self.answered(*stage).within(members);
        if !follows {
            return Err(ServerError::Restore { stage: *stage });
        }
        self.closed.push(members.clone());
        Ok(())
    }

    /// Folds an answer. The order of answers does not matter, nor do repetitions; only if a member contradicts itself, the
    /// answer that is taken first stands, so that a log should be read in its own order.
    ///
    /// # Errors
    /// [`ServerError`] if it is none that was asked for; the server is as it was.
    pub fn take(&mut self, message: &Message<'_>) -> Result<Taken, ServerError> {
        let Message { from, answer, .. } = message;
        let (from, stage) = (*from, answer.stage());
        let client = || self.session.name(from);
        if message.session != *self.session.id() || message.version != VERSION {
            return Err(ServerError::Session { client: client() });
        }
        if !self.asked(stage).contains(from) {
            return Err(ServerError::NotAsked { client: client(), stage });
        }
        if self.closed.get(stage as usize).is_some_and(|members| !members.contains(from)) {
            return Err(ServerError::Late { client: client(), stage });
        }
        let digest = digest(answer);
        match self.members.get(from as usize).and_then(|record| record.answers[stage as usize]) {
            Some(before) if before == digest => return Ok(Taken::Repeated),
            Some(_) => return Err(ServerError::Contradiction { client: client(), stage }),
            None => {}
        }
        self.fold(from, answer)?;
        self.members[from as usize].answers[stage as usize] = Some(digest);
        Ok(Taken::New)
    }

    fn fold(&mut self, from: Member, answer: &Answer<'_>) -> Result<(), ServerError> {
        let client = || self.session.name(from);
        let length = |got: usize, expected: usize| match got == expected {
            true => Ok(()),
            false => Err(ServerError::Length { client: client(), stage: answer.stage(), got, expected }),
        };
        match answer {
            Answer::Keys(keys) => {
                let keys = PublicKeys::from_bytes(keys);
                if !keys.genuine(&self.session, from) {
                    return Err(ServerError::Signature { client: client(), stage: Stage::Advertise });
                }
                self.members[from as usize].keys = Some(keys);
            }
            Answer::Shares { commitment, sealed } => {
                let holders: Vec<_> = self.neighbours(from, Stage::Advertise).collect();
                length(sealed.len(), SEALED * holders.len())?;
                self.members[from as usize].commitment = *commitment;
                for (holder, sealed) in holders.iter().zip(sealed.as_chunks().0) {
                    self.members[*holder as usize].inbox.push((from, *sealed));
                }
            }
            Answer::Masked(packed) => {
                length(packed.len(), Words::packed_len(self.sum.bits(), self.sum.len()))?;
                let _ = self.sum.add_packed(packed);
            }
            Answer::Confirmed(signature) => {
                let (sharers, survivors) = (self.set(Stage::Share), self.set(Stage::Mask));
                if !verify(&self.session, from, &survivors_text(&self.session, sharers, survivors), signature)
                {
                    return Err(ServerError::Signature { client: client(), stage: Stage::Confirm });
                }
                self.members[from as usize].signature = Some(*signature);
            }
            Answer::Unmasked(shares) => {
                length(shares.len(), 32 * (self.neighbours(from, Stage::Share).count() + 1))?;
                self.members[from as usize].shares = shares.as_chunks().0.to_vec();
            }
        }
        Ok(())
    }

    /// Other holders of `member`'s shares that took part in `stage`, which is closed.
    fn neighbours(&self, member: Member, stage: Stage) -> impl Iterator<Item = Member> + '_ {
        let members = self.set(stage);
        self.session
            .holders(member)
            .into_iter()
            .filter(move |other| *other != member && members.contains(*other))
    }

    fn set(&self, stage: Stage) -> &Members {
        // `take` and `request` come here for stages before one in which somebody is asked, which are closed.
        &self.closed[stage as usize]
    }

    /// Whether all who took part in closed stages have been heard.
    fn complete(&self) -> Result<(), ServerError> {
        for (stage, members) in Stage::ALL.iter().zip(&self.closed) {
            let answered = self.answered(*stage);
            if let Some(missing) = members.iter().find(|member| !answered.contains(*member)) {
                return Err(ServerError::Incomplete { client: self.session.name(missing), stage: *stage });
            }
        }
        Ok(())
    }
}

fn digest(answer: &Answer<'_>) -> [u8; 32] {
    let digest = Sha256::new();
    match answer {
        Answer::Keys(bytes) => digest.chain_update(bytes),
        Answer::Shares { commitment, sealed } => digest.chain_update(commitment).chain_update(sealed),
        Answer::Masked(bytes) | Answer::Unmasked(bytes) => digest.chain_update(bytes),
        Answer::Confirmed(bytes) => digest.chain_update(bytes),
    }
    .finalize()
    .into()
}
