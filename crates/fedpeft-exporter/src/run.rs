//! One run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fedpeft_protocol::{
    ClientId, Round,
    event::EventKind,
    round::{ByteKind, BytesByKind, ClientOutcome, Direction, PhaseSeconds, RoundReport},
    run::PrivacyState,
    secure::SecureStage,
};

use crate::{clients::Clients, ledger::Limits};

/// Bytes by direction and kind.
pub(crate) type Bytes = BTreeMap<(Direction, ByteKind), u64>;

/// Answers and rejections remembered, so that those an aggregator repeats after a restart count once: twice the
/// largest cohort.
const REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Run {
    pub method: String,
    pub status: &'static str,
    pub rounds_planned: Round,
    pub adapter_values: u64,
    pub backbone_values: u64,
    pub clients_present: Option<u32>,
    pub clients_needed: Option<u32>,
    pub open_round: Option<Round>,
    /// The last closed round.
    pub round: Round,
    pub rounds_closed: u64,
    pub bytes: Bytes,
    /// Of these, bodies of messages.
    pub payload: Bytes,
    /// Bytes by client and direction, where clients are shown.
    pub clients: Clients,
    pub recent: VecDeque<(Round, Bytes)>,
    pub loss: Option<f64>,
    pub accuracy: Option<f64>,
    pub train_loss: Option<f64>,
    pub privacy: Option<PrivacyState>,
    pub outcomes: BTreeMap<&'static str, u64>,
    pub seconds: PhaseSeconds,
    /// Clients that ended each stage of secure aggregation, of the open round or, between rounds, of the last one.
    pub secure: BTreeMap<SecureStage, u32>,
    pub accepted: u64,
    pub rejected: u64,
    /// Whole models that full fine-tuning would have sent: one to each sampled client, one from each that
    /// answered.
    pub models_sent: u64,
    answered: BTreeSet<(Round, ClientId)>,
    refused: BTreeSet<(Round, ClientId, String)>,
}

impl Run {
    pub fn fold(&mut self, event: &EventKind, limits: Limits) {
        match event {
            EventKind::Status { status, method, rounds, adapter_values, backbone_values } => {
                self.status = status.word();
                self.method = method.chars().take(64).collect();
                self.rounds_planned = *rounds;
                (self.adapter_values, self.backbone_values) = (*adapter_values, *backbone_values);
                if status.is_final() {
                    (self.open_round, self.clients_present) = (None, None);
                }
            }
            EventKind::Waiting { present, needed } => {
                (self.clients_present, self.clients_needed) = (Some(*present), Some(*needed));
            }
            EventKind::RoundOpened { round, .. } => {
                self.open_round = Some(*round);
                self.secure.clear();
                self.forget_answers_before(*round);
            }
            EventKind::UpdateAccepted { round, client, .. } => {
                let new = *round > self.round && self.answered.insert((*round, client.clone()));
                self.accepted += u64::from(new);
                if self.answered.len() > REMEMBERED {
                    self.answered.pop_first();
                }
            }
            EventKind::UpdateRejected { round, client, reason } => {
                let reason = reason.chars().take(200).collect();
                let new = self.refused.insert((*round, client.clone(), reason));
                self.rejected += u64::from(new);
                if self.refused.len() > REMEMBERED {
                    self.refused.pop_first();
                }
            }
            EventKind::SecureStageClosed { round, stage, clients, .. } => {
                if *round > self.round {
                    self.secure.insert(*stage, *clients);
                }
            }
            EventKind::RoundClosed { report } => self.close(report, limits),
            // The bus joins these to what follows, and takes them apart.
            EventKind::RoundClients { .. } | EventKind::UpdatesAccepted { .. } => {}
        }
    }

    /// A round counts once; told again, it only adds an evaluation that came late.
    fn close(&mut self, report: &RoundReport, limits: Limits) {
        if report.round < self.round {
            return;
        }
        self.loss = report.loss.or(self.loss);
        self.accuracy = report.accuracy.or(self.accuracy);
        self.seconds = report.seconds;
        if report.round == self.round {
            return;
        }
        self.round = report.round;
        self.rounds_closed += 1;
        self.open_round = None;
        self.train_loss = Some(report.train_loss);
        self.privacy = report.privacy;
        let bytes = parse(&report.bytes_by_kind);
        add(&mut self.bytes, &bytes);
        add(&mut self.payload, &parse(&report.payload_by_kind));
        if limits.clients > 0 {
            self.clients.add(report);
        }
        self.recent.push_back((report.round, bytes));
        while self.recent.len() > limits.rounds {
            self.recent.pop_front();
        }
        self.outcomes = BTreeMap::new();
        for client in &report.clients {
            *self.outcomes.entry(client.outcome.word()).or_default() += 1;
            let answered = matches!(client.outcome, ClientOutcome::Accepted { .. });
            self.models_sent += 1 + u64::from(answered);
        }
        self.forget_answers_before(report.round.saturating_add(1));
    }

    fn forget_answers_before(&mut self, round: Round) {
        self.answered.retain(|(of, _)| *of >= round);
    }

    /// Bytes full fine-tuning would have sent so far, in 32-bit floats.
    pub fn full_finetuning_bytes(&self) -> f64 {
        self.models_sent as f64 * self.backbone_values as f64 * 4.0
    }
}

fn add(sums: &mut Bytes, bytes: &Bytes) {
    for (key, count) in bytes {
        let total = sums.entry(*key).or_default();
        *total = total.saturating_add(*count);
    }
}

/// Keys are `up.adapter`, `down.backbone`, ...; others become no label.
fn parse(bytes: &BytesByKind) -> Bytes {
    let all = [Direction::Up, Direction::Down]
        .into_iter()
        .flat_map(|direction| ByteKind::ALL.into_iter().map(move |kind| (direction, kind)));
    all.filter_map(|(direction, kind)| {
        let count = bytes.get(&format!("{}.{}", direction.label(), kind.label()))?;
        Some(((direction, kind), *count))
    })
    .collect()
}
