//! The clients of a round: what each was asked and answered, and the bytes that it took. A cohort may be large: what
//! clients have in common is held once, and what few have apart.

use fedpeft_bus::{Counts, PackedCounts};
use fedpeft_protocol::{
    ClientId, Digest,
    round::{Personal, Transfer},
    secure::SecureStage,
};

use crate::members::{Member, Members};

/// A client's answer to its task. The first one counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// Its update is in the sum.
    Accepted(Accepted),
    /// Its update was refused.
    Rejected(Box<str>),
    /// It could not do its task.
    Failed(Box<str>),
}

/// An update that is in the sum.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Accepted {
    pub digest: Digest,
    pub examples: u64,
    /// Its weight in the sum.
    pub weight: u64,
    pub loss: f64,
    pub seconds: f64,
    /// The last stage of secure aggregation that it answers, where the round has that.
    pub stage: Option<SecureStage>,
    /// What few say.
    pub more: Option<Box<More>>,
}

/// What few clients say of their updates.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct More {
    /// What the client's own model came to, where it was asked.
    pub personal: Option<Personal>,
    /// Updates in it, if it is a sum; else 0.
    pub updates: u64,
    /// What the client says that its examples have cost, where it trains with DP-SGD and withholds its loss.
    pub epsilon: Option<f64>,
}

impl More {
    /// Nothing, where there is no more.
    pub fn of(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

impl Accepted {
    pub fn personal(&self) -> Option<Personal> {
        self.more.as_ref().and_then(|more| more.personal)
    }

    pub fn updates(&self) -> u64 {
        self.more.as_ref().map_or(0, |more| more.updates)
    }

    pub fn epsilon(&self) -> Option<f64> {
        self.more.as_ref().and_then(|more| more.epsilon)
    }
}

/// What came of a client. Of ten thousand, each byte counts.
#[derive(Debug, Clone, Default)]
struct Row {
    answer: Option<Answer>,
    bytes: PackedCounts,
}

/// The row of each member, at its place: in pieces, which fit where memory is free. One megabyte seldom does.
#[derive(Debug, Clone)]
struct Rows(Vec<Box<[Row]>>);

/// Rows of a piece.
const PIECE: usize = 256;

impl Rows {
    fn new(count: usize) -> Self {
        let piece = |at| vec![Row::default(); PIECE.min(count - at)].into();
        Self((0..count).step_by(PIECE).map(piece).collect())
    }

    fn get(&self, at: usize) -> Option<&Row> {
        self.0.get(at / PIECE)?.get(at % PIECE)
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Row> {
        self.0.get_mut(at / PIECE)?.get_mut(at % PIECE)
    }

    fn iter(&self) -> impl Iterator<Item = &Row> {
        self.0.iter().flatten()
    }
}

/// All clients of a round.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    members: Members,
    rows: Rows,
    answered: usize,
    /// Of the bytes of all clients, bodies of messages.
    payload: Counts,
}

impl Clients {
    /// These, of whom none has answered yet.
    pub fn new(members: Members) -> Self {
        let rows = Rows::new(members.len());
        Self { members, rows, answered: 0, payload: Counts::default() }
    }

    fn row(&self, client: &ClientId) -> Option<&Row> {
        self.rows.get(self.members.find(client)?)
    }

    fn row_mut(&mut self, client: &ClientId) -> Option<&mut Row> {
        self.rows.get_mut(self.members.find(client)?)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// How many have answered.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// How many have not answered.
    pub fn waits_for(&self) -> usize {
        self.len() - self.answered
    }

    /// What a client was asked; nothing, if it is none of them.
    pub fn member(&self, client: &ClientId) -> Option<Member> {
        self.members.find(client).map(|at| self.members.member(at))
    }

    /// What a client answered.
    pub fn answer(&self, client: &ClientId) -> Option<&Answer> {
        self.row(client).and_then(|row| row.answer.as_ref())
    }

    /// What a client answered, to be changed.
    pub fn answer_mut(&mut self, client: &ClientId) -> Option<&mut Answer> {
        self.row_mut(client).and_then(|row| row.answer.as_mut())
    }

    /// Whether a client has answered.
    pub fn has_answered(&self, client: &ClientId) -> bool {
        self.answer(client).is_some()
    }

    /// Takes the answer of a client, unless it is none of them.
    pub fn take(&mut self, client: &ClientId, answer: Answer) {
        if let Some(row) = self.row_mut(client) {
            let is_first = row.answer.replace(answer).is_none();
            self.answered += usize::from(is_first);
        }
    }

    /// Every client by name, what it was asked, and what it answered.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ClientId, Member, Option<&Answer>)> {
        let answer = |at| self.rows.get(at).and_then(|row| row.answer.as_ref());
        (0..self.len()).map(move |at| (self.members.client(at), self.members.member(at), answer(at)))
    }

    /// Clients that have not answered.
    pub fn outstanding(&self) -> impl Iterator<Item = &ClientId> {
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, row)| row.answer.is_none()).map(|(at, _)| self.members.client(at))
    }

    /// Updates in the sum.
    pub fn accepted(&self) -> impl Iterator<Item = &Accepted> {
        self.rows.iter().filter_map(|row| match &row.answer {
            Some(Answer::Accepted(accepted)) => Some(accepted),
            Some(Answer::Rejected(_) | Answer::Failed(_)) | None => None,
        })
    }

    /// Updates in the sum, whose they are, and what those were asked.
    pub fn accepted_by(&self) -> impl Iterator<Item = (&ClientId, Member, &Accepted)> {
        self.iter().filter_map(|(client, member, answer)| match answer {
            Some(Answer::Accepted(accepted)) => Some((client, member, accepted)),
            Some(Answer::Rejected(_) | Answer::Failed(_)) | None => None,
        })
    }

    /// Counts bytes that a client took.
    pub fn count(&mut self, client: &ClientId, transfers: impl IntoIterator<Item = Transfer>) {
        let Some(row) = self.row_mut(client) else { return };
        let (mut bytes, mut bodies) = (row.bytes.unpacked(), Counts::default());
        for transfer in transfers {
            bytes.add(transfer);
            bodies.add_bodies(transfer);
        }
        row.bytes = bytes.packed();
        self.payload.extend(&bodies);
    }

    /// Bytes that a client took.
    pub fn bytes(&self, client: &ClientId) -> Counts {
        self.row(client).map(|row| row.bytes.unpacked()).unwrap_or_default()
    }

    /// Bytes that all took.
    pub fn all_bytes(&self) -> Counts {
        let mut all = Counts::default();
        self.rows.iter().for_each(|row| all.extend(&row.bytes.unpacked()));
        all
    }

    /// Of these, bodies of messages.
    pub fn payload(&self) -> Counts {
        self.payload
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fedpeft_bus::Measured;
    use fedpeft_protocol::round::{ByteKind, Direction};

    use super::*;
    use crate::members::Asked;

    #[test]
    fn rows_are_small() {
        assert!(size_of::<Row>() <= 104, "{}", size_of::<Row>());
    }

    #[test]
    fn pieces_have_a_row_at_each_place() {
        for count in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let mut rows = Rows::new(count);
            assert_eq!(rows.iter().count(), count);
            assert!((0..count).all(|at| rows.get_mut(at).is_some()) && rows.get(count).is_none());
        }
    }

    #[test]
    fn clients_are_found_by_name_and_count_once() {
        let id = |name: &str| ClientId::new(name).unwrap();
        let adapter = Digest::of(b"adapter");
        let asked = Arc::new(Asked { round: 1, epoch: 1, adapter, deadline_ms: 0, aggregates: false });
        let member = |name: &str| (id(name), Member { asked: asked.clone(), examples: 1 });
        let mut clients = Clients::new(Members::Listed(["a", "b", "c"].map(member).to_vec()));
        clients.take(&id("b"), Answer::Failed("first".into()));
        clients.take(&id("b"), Answer::Failed("second".into()));
        clients.take(&id("d"), Answer::Failed("nobody".into()));
        assert_eq!((clients.len(), clients.answered(), clients.waits_for()), (3, 1, 2));
        assert_eq!(clients.outstanding().map(ClientId::as_str).collect::<String>(), "ac");
        for _ in 0..2 {
            let transfer = Measured { payload: 10, total: 12 }.transfer(Direction::Up, ByteKind::Adapter);
            clients.count(&id("a"), [transfer]);
        }
        assert_eq!(clients.bytes(&id("a")).sum(Direction::Up), 24);
        assert_eq!((clients.all_bytes().sum(Direction::Up), clients.payload().sum(Direction::Up)), (24, 20));
        assert_eq!(clients.bytes(&id("b")), Counts::default());
    }
}
