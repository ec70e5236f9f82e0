//! What is known of a run.

use std::collections::{BTreeMap, VecDeque};

use fedpeft_protocol::{
    ClientId, Round, RunId,
    event::{Event, EventKind},
    round::{ClientOutcome, RoundReport},
    run::{PrivacyState, RunRecord, RunSpec, RunStatus},
};

/// Lines of what happened that are kept: more than any terminal shows.
const REMEMBERED: usize = 200;

/// A run, as far as it was told of.
#[derive(Debug, Clone)]
pub struct State {
    pub(crate) run: RunId,
    pub(crate) spec: RunSpec,
    pub(crate) status: RunStatus,
    pub(crate) method: Option<String>,
    /// Values of the whole backbone, where known.
    pub(crate) backbone_values: u64,
    /// Present clients and how many are needed, while the run waits for them.
    pub(crate) waiting: Option<(u32, u32)>,
    pub(crate) open: Option<Open>,
    pub(crate) rounds: BTreeMap<Round, Closed>,
    pub(crate) happened: VecDeque<Happened>,
}

/// The round that is open.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub round: Round,
    /// Clients with a task.
    pub sampled: usize,
    /// In milliseconds since the Unix epoch.
    pub opened_ms: u64,
    /// Who has answered, and whether the update counts.
    pub answers: BTreeMap<ClientId, bool>,
}

/// What is shown of a committed round.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    pub loss: Option<f64>,
    pub accuracy: Option<f64>,
    pub up: u64,
    pub down: u64,
    pub seconds: f64,
    pub sampled: usize,
    pub accepted: usize,
    /// Outcomes other than accepted, by their word.
    pub others: BTreeMap<&'static str, usize>,
    pub privacy: Option<PrivacyState>,
}

/// One line of what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Happened {
    /// In milliseconds since the Unix epoch.
    pub at_ms: u64,
    pub what: String,
    /// Whether it is trouble.
    pub is_bad: bool,
}

/// Where the run stands, in one word or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nobody has taken it up, or nothing was heard of it.
    Pending,
    /// For clients to be present.
    Waiting { present: u32, needed: u32 },
    /// Tasks are out.
    Training,
    /// All updates that the round wants are there: they are aggregated, and what comes of them is evaluated.
    Closing,
    /// Between two rounds.
    Between,
    /// Nothing more will happen.
    Ended,
}

impl State {
    /// What the record of a run says.
    pub fn new(record: &RunRecord) -> Self {
        let mut state = Self {
            run: record.run.clone(),
            spec: record.spec.clone(),
            status: record.status.clone(),
            method: None,
            backbone_values: 0,
            waiting: None,
            open: None,
            rounds: BTreeMap::new(),
            happened: VecDeque::new(),
        };
        state.record(record);
        state
    }

    /// Takes in the durable state: it is right where events were lost.
    pub fn record(&mut self, record: &RunRecord) {
        self.status = record.status.clone();
        let Some(open) = &record.open else { return };
        if self.is_news(open.round) {
            self.open(open.round, open.cohort.len(), open.opened_ms);
        }
    }

    /// Takes in the report of a committed round.
    pub fn report(&mut self, report: &RoundReport) {
        let mut others = BTreeMap::new();
        let mut accepted = 0;
        for client in &report.clients {
            match client.outcome {
                ClientOutcome::Accepted { .. } => accepted += 1,
                ref other => *others.entry(other.word()).or_default() += 1,
            }
        }
        // A round that is told again may have been evaluated meanwhile.
        let before = self.rounds.get(&report.round);
        let loss = report.loss.or_else(|| before.and_then(|own| own.loss));
        let accuracy = report.accuracy.or_else(|| before.and_then(|own| own.accuracy));
        let (up, down) = (report.bytes_up, report.bytes_down);
        let (sampled, seconds) = (report.clients.len(), report.seconds.total);
        let closed =
            Closed { loss, accuracy, up, down, seconds, sampled, accepted, others, privacy: report.privacy };
        self.rounds.insert(report.round, closed);
        if self.open.as_ref().is_some_and(|open| open.round <= report.round) {
            self.open = None;
        }
    }

    /// Takes in an event.
    pub fn event(&mut self, event: &Event) {
        let at = event.at_ms;
        match &event.kind {
            EventKind::Status { status, method, backbone_values, .. } => {
                self.status = status.clone();
                (self.method, self.backbone_values) = (Some(method.clone()), *backbone_values);
                let (is_bad, what) = match status {
                    RunStatus::Failed { reason } => (true, format!("the run failed: {reason}")),
                    other => (false, format!("the run is {}", other.word())),
                };
                self.happen(at, is_bad, what);
                if status.is_final() {
                    (self.open, self.waiting) = (None, None);
                }
            }
            EventKind::Waiting { present, needed } => self.waiting = Some((*present, *needed)),
            EventKind::RoundOpened { round, cohort } => {
                self.waiting = None;
                self.happen(at, false, format!("round {round} opens, {} clients have a task", cohort.len()));
                if self.is_news(*round) {
                    self.open(*round, cohort.len(), at);
                }
            }
            EventKind::UpdateAccepted { round, client, examples, seconds, .. } => {
                let line =
                    format!("round {round}: {client} trained on {examples} examples in {seconds:.1} s");
                self.happen(at, false, line);
                self.answer(*round, client, true);
            }
            EventKind::UpdateRejected { round, client, reason } => {
                self.happen(at, true, format!("round {round}: update of {client} refused: {reason}"));
                self.answer(*round, client, false);
            }
            EventKind::SecureStageClosed { round, stage, clients, asked } => {
                let line =
                    format!("round {round}: {} ends, {clients} of {asked} clients answered", stage.word());
                self.happen(at, false, line);
            }
            EventKind::RoundClosed { report } => {
                let accuracy = report.accuracy.map_or_else(String::new, |own| format!(", accuracy {own:.4}"));
                let line =
                    format!("round {} closes after {:.1} s{accuracy}", report.round, report.seconds.total);
                self.happen(at, false, line);
                self.report(report);
            }
            // The bus joins these to what follows, and takes them apart.
            EventKind::RoundClients { .. } | EventKind::UpdatesAccepted { .. } => {}
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.status.is_final() {
            return Phase::Ended;
        }
        if let Some(open) = &self.open {
            let accepted = open.answers.values().filter(|counts| **counts).count();
            let wanted = if self.spec.is_poisson() { open.sampled } else { self.spec.target() as usize };
            let is_full = accepted >= wanted || open.answers.len() >= open.sampled;
            return if is_full { Phase::Closing } else { Phase::Training };
        }
        match self.waiting {
            Some((present, needed)) => Phase::Waiting { present, needed },
            None if self.rounds.is_empty() => Phase::Pending,
            None => Phase::Between,
        }
    }

    /// When the open round closes whatever comes, in milliseconds since the Unix epoch.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        // A conversion of floats to integers saturates.
        let open = self.open.as_ref()?;
        Some(open.opened_ms.saturating_add((self.spec.round_deadline_seconds * 1000.0) as u64))
    }

    /// Bytes of all rounds, up and down.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let sum = |of: fn(&Closed) -> u64| self.rounds.values().map(of).fold(0, u64::saturating_add);
        (sum(|round| round.up), sum(|round| round.down))
    }

    /// Bytes that full fine-tuning would have sent: the model in 32-bit floats to each client with a task, and from each
    /// whose update counts.
    pub(crate) fn full_bytes(&self) -> Option<f64> {
        let models: usize = self.rounds.values().map(|round| round.sampled + round.accepted).sum();
        let bytes = 4.0 * self.backbone_values as f64 * models as f64;
        (bytes > 0.0).then_some(bytes)
    }

    /// A round later than all that were told of.
    fn is_news(&self, round: Round) -> bool {
        let closed = self.rounds.last_key_value().is_some_and(|(last, _)| round <= *last);
        !closed && self.open.as_ref().is_none_or(|open| open.round < round)
    }

    fn open(&mut self, round: Round, sampled: usize, opened_ms: u64) {
        self.open = Some(Open { round, sampled, opened_ms, answers: BTreeMap::new() });
    }

    fn answer(&mut self, round: Round, client: &ClientId, counts: bool) {
        if let Some(open) = self.open.as_mut().filter(|open| open.round == round) {
            // A client may be refused once and come again.
            let best = open.answers.entry(client.clone()).or_insert(counts);
            *best |= counts;
        }
    }

    fn happen(&mut self, at_ms: u64, is_bad: bool, what: String) {
        let harmless = |c: char| if c.is_control() { ' ' } else { c };
        self.happened.push_back(Happened { at_ms, is_bad, what: what.chars().map(harmless).collect() });
        if self.happened.len() > REMEMBERED {
            self.happened.pop_front();
        }
    }
}
