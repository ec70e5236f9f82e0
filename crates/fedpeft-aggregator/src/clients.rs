//! The clients of a round: what each was asked and answered, and the bytes that it took. A cohort may be large: what
//! clients have in common is held once, and what few have apart.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use fedpeft_bus::Counts;
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
}

/// What a client of the round was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub asked: Arc<Asked>,
    /// Examples that it declared: the most its update may weigh.
    pub examples: u64,
    /// Whether it is an edge, and answers with a sum.
    pub aggregates: bool,
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

#[derive(Debug, Clone)]
struct Row {
    member: Member,
    answer: Option<Answer>,
    bytes: Counts,
}

/// All clients of a round.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    rows: BTreeMap<ClientId, Row>,
    answered: usize,
    /// Of the bytes of all clients, bodies of messages.
    payload: Counts,
}

impl Clients {
    /// None of them has answered yet.
    pub fn new(members: BTreeMap<ClientId, Member>) -> Self {
        let row = |member| Row { member, answer: None, bytes: Counts::default() };
        // Made in order and at once, the table has no gaps.
        let rows = members.into_iter().map(|(client, member)| (client, row(member))).collect();
        Self { rows, answered: 0, payload: Counts::default() }
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
        self.rows.get(client).map(|row| &row.member)
    }

    /// What a client answered.
    pub fn answer(&self, client: &ClientId) -> Option<&Answer> {
        self.rows.get(client).and_then(|row| row.answer.as_ref())
    }

    /// What a client answered, to be changed.
    pub fn answer_mut(&mut self, client: &ClientId) -> Option<&mut Answer> {
        self.rows.get_mut(client).and_then(|row| row.answer.as_mut())
    }

    /// Whether a client has answered.
    pub fn has_answered(&self, client: &ClientId) -> bool {
        self.answer(client).is_some()
    }

    /// Takes the answer of a client, unless it is none of them.
    pub fn take(&mut self, client: &ClientId, answer: Answer) {
        if let Some(row) = self.rows.get_mut(client) {
            self.answered += usize::from(row.answer.is_none());
            row.answer = Some(answer);
        }
    }

    /// Every client by name, what it was asked, and what it answered.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ClientId, &Member, Option<&Answer>)> {
        self.rows.iter().map(|(client, row)| (client, &row.member, row.answer.as_ref()))
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
        let Some(row) = self.rows.get_mut(client) else { return };
        for transfer in transfers {
            row.bytes.add(transfer);
            self.payload.add_bodies(transfer);
        }
    }

    /// Bytes that a client took.
    pub fn bytes(&self, client: &ClientId) -> Counts {
        self.rows.get(client).map(|row| row.bytes).unwrap_or_default()
    }

    /// Bytes that all took.
    pub fn all_bytes(&self) -> Counts {
        let mut all = Counts::default();
        self.rows.values().for_each(|row| all.extend(&row.bytes));
        all
    }

    /// Of these, bodies of messages.
    pub fn payload(&self) -> Counts {
        self.payload
    }
}
