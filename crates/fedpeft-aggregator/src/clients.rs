//! The clients of a round: what each was asked and answered, and the bytes that it took. A cohort may be large: what
//! clients have in common is held once, and what few have apart.

use std::{ops::Deref, sync::Arc};

use fedpeft_bus::{Counts, PackedCounts};
use fedpeft_protocol::{
    ClientId, Digest, Epoch, Round,
    round::{Personal, Transfer},
    secure::SecureStage,
};

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

/// What clients were asked that began together.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    /// The round in which they got their tasks: the open one, or, where rounds are buffered, an earlier one.
    pub round: Round,
    /// Fencing token of the tasks.
    pub epoch: Epoch,
    /// The global adapter they began with.
    pub adapter: Digest,
    /// When nobody waits for them any more.
    pub deadline_ms: u64,
    /// Whether they are edges, and answer with sums.
    pub aggregates: bool,
}

/// What a client of the round was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub asked: Arc<Asked>,
    /// Examples that it declared: the most its update may weigh.
    pub examples: u64,
}

impl Member {
    /// What its task was, in one word; of secure aggregation, that of a stage.
    pub fn work(&self, stage: Option<SecureStage>) -> &'static str {
        match stage {
            Some(stage) => stage.work(),
            None if self.aggregates => "aggregate",
            None => "train",
        }
    }
}

impl Deref for Member {
    type Target = Asked;

    fn deref(&self) -> &Asked {
        &self.asked
    }
}

/// What is known of a client. Of ten thousand, each byte counts.
#[derive(Debug, Clone)]
struct Row {
    client: ClientId,
    member: Member,
    answer: Option<Answer>,
    bytes: PackedCounts,
}

/// All clients of a round.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    /// Sorted by name, each once.
    rows: Vec<Row>,
    answered: usize,
    /// Of the bytes of all clients, bodies of messages.
    payload: Counts,
}

impl Clients {
    /// These, of whom none has answered yet, about `expected` of them. Of one that is there twice, the first counts.
    pub fn new(expected: usize, members: impl Iterator<Item = (ClientId, Member)>) -> Self {
        let row = |(client, member)| Row { client, member, answer: None, bytes: PackedCounts::default() };
        // In one piece, and without room for more.
        let mut rows = Vec::with_capacity(expected);
        rows.extend(members.map(row));
        rows.sort_by(|a, b| a.client.cmp(&b.client));
        rows.dedup_by(|later, first| later.client == first.client);
        Self { rows, answered: 0, payload: Counts::default() }
    }

    fn row(&self, client: &ClientId) -> Option<&Row> {
        self.rows.get(self.rows.binary_search_by(|row| row.client.cmp(client)).ok()?)
    }

    fn row_mut(&mut self, client: &ClientId) -> Option<&mut Row> {
        let at = self.rows.binary_search_by(|row| row.client.cmp(client)).ok()?;
        self.rows.get_mut(at)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// How many have answered.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// How many have not answered.
    pub fn waits_for(&self) -> usize {
        self.rows.len() - self.answered
    }

    /// What a client was asked; nothing, if it is none of them.
    pub fn member(&self, client: &ClientId) -> Option<&Member> {
        self.row(client).map(|row| &row.member)
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
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ClientId, &Member, Option<&Answer>)> {
        self.rows.iter().map(|Row { client, member, answer, .. }| (client, member, answer.as_ref()))
    }

    /// Clients that have not answered.
    pub fn outstanding(&self) -> impl Iterator<Item = &ClientId> {
        self.iter().filter(|(.., answer)| answer.is_none()).map(|(client, ..)| client)
    }

    /// Updates in the sum.
    pub fn accepted(&self) -> impl Iterator<Item = &Accepted> {
        self.accepted_by().map(|(.., accepted)| accepted)
    }

    /// Updates in the sum, whose they are, and what those were asked.
    pub fn accepted_by(&self) -> impl Iterator<Item = (&ClientId, &Member, &Accepted)> {
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
    use fedpeft_bus::Measured;
    use fedpeft_protocol::round::{ByteKind, Direction};

    use super::*;

    fn named(names: &[&str]) -> Clients {
        let adapter = Digest::of(b"adapter");
        let asked = Arc::new(Asked { round: 1, epoch: 1, adapter, deadline_ms: 0, aggregates: false });
        let members = names.iter().enumerate().map(|(at, name)| {
            let member = Member { asked: asked.clone(), examples: at as u64 };
            (ClientId::new(name).unwrap(), member)
        });
        Clients::new(names.len(), members)
    }

    #[test]
    fn rows_are_small() {
        assert!(size_of::<Row>() <= 136, "{}", size_of::<Row>());
    }

    #[test]
    fn clients_are_found_by_name_and_count_once() {
        let mut clients = named(&["c", "a", "b", "a"]);
        let id = |name: &str| ClientId::new(name).unwrap();
        assert_eq!(clients.iter().map(|(client, ..)| client.as_str()).collect::<String>(), "abc");
        assert_eq!(clients.member(&id("a")).map(|member| member.examples), Some(1));
        assert!(clients.member(&id("d")).is_none());
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
