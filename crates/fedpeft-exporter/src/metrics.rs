//! The ledger as metric families, made anew at every scrape: what the ledger forgets is gone from the page.

use std::collections::{BTreeMap, HashMap};

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use fedpeft_protocol::round::Direction;

use crate::{Exporter, run::Run};

struct Spec {
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    help: &'static str,
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Spec {
    Spec { name, kind: MetricType::GAUGE, labels, help }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Spec {
    Spec { name, kind: MetricType::COUNTER, labels, help }
}

const RUN_INFO: Spec = gauge(
    "fedpeft_run_info",
    &["run", "method", "status"],
    "PEFT method and status (pending, running, completed, cancelled, failed) of a run; always 1.",
);
const ROUNDS: Spec = counter("fedpeft_rounds_total", &["run"], "Rounds committed.");
const ROUND: Spec = gauge("fedpeft_round", &["run"], "Index of the last committed round, counted from 1.");
const OPEN_ROUND: Spec =
    gauge("fedpeft_open_round", &["run"], "Index of the round in progress; absent between rounds.");
const PLANNED: Spec = gauge("fedpeft_rounds_planned", &["run"], "Rounds the run was asked for.");
const BYTES: Spec = counter(
    "fedpeft_bytes_total",
    &["run", "direction", "kind"],
    "Bytes between clients and aggregator or blob store, with subjects and headers, by direction as the \
     client sees it (up, down) and kind (adapter, backbone, artifacts, evaluation, control).",
);
const PAYLOAD: Spec = counter(
    "fedpeft_payload_bytes_total",
    &["run", "direction", "kind"],
    "Of fedpeft_bytes_total, bodies of messages: the rest is envelopes, that is subjects and headers.",
);
const CLIENT_BYTES: Spec = gauge(
    "fedpeft_client_bytes",
    &["run", "client", "direction"],
    "Bytes so far of the clients with most of them, and of all others as (other): with --top-clients only.",
);
const ROUND_BYTES: Spec = gauge(
    "fedpeft_round_bytes",
    &["run", "round", "direction", "kind"],
    "Bytes of one committed round, as fedpeft_bytes_total; recent rounds only.",
);
const FULL_BYTES: Spec = gauge(
    "fedpeft_full_finetuning_bytes",
    &["run"],
    "Bytes that full fine-tuning would have sent in the same rounds: every parameter in 32-bit floats, down \
     to each client of the cohort and up from each whose update was accepted.",
);
const ADAPTER: Spec =
    gauge("fedpeft_adapter_values", &["run", "method"], "Trainable values: numbers in the adapter.");
const BACKBONE: Spec = gauge("fedpeft_backbone_values", &["run"], "Values of the frozen backbone.");
const LOSS: Spec = gauge("fedpeft_loss", &["run"], "Held-out loss of the last evaluated global adapter.");
const ACCURACY: Spec = gauge(
    "fedpeft_accuracy",
    &["run"],
    "Held-out accuracy of the last evaluated global adapter, a ratio from 0 to 1.",
);
const TRAIN_LOSS: Spec = gauge(
    "fedpeft_train_loss",
    &["run"],
    "Training loss of the last committed round: mean over accepted clients, weighted by examples.",
);
const EPSILON: Spec = gauge(
    "fedpeft_privacy_epsilon",
    &["run"],
    "Epsilon of differential privacy that a private run has spent so far, at the delta that was asked for.",
);
const CLIP_NORM: Spec = gauge(
    "fedpeft_privacy_clip_norm",
    &["run"],
    "L2 norm that the updates of a private run's last committed round were clipped to.",
);
const COHORT: Spec = gauge(
    "fedpeft_cohort_clients",
    &["run", "outcome"],
    "Clients of the last committed round by outcome (accepted, rejected, failed, dropped).",
);
const SECURE: Spec = gauge(
    "fedpeft_secure_stage_clients",
    &["run", "stage"],
    "Clients that ended a stage of secure aggregation (advertise, share, mask, confirm, unmask), of the round in \
     progress or, between rounds, of the last one; absent for stages that have not ended.",
);
const SECONDS: Spec = gauge(
    "fedpeft_round_seconds",
    &["run", "phase"],
    "Seconds of the last committed round by phase (select, broadcast, train, collect, aggregate, evaluate, \
     total).",
);
const ACCEPTED: Spec =
    counter("fedpeft_updates_accepted_total", &["run"], "Updates that were folded into the global adapter.");
const REJECTED: Spec =
    counter("fedpeft_updates_rejected_total", &["run"], "Updates that were refused; events say why.");
const PRESENT: Spec =
    gauge("fedpeft_clients_present", &["run"], "Clients present when the run last waited for them.");
const NEEDED: Spec =
    gauge("fedpeft_clients_needed", &["run"], "Clients that must be present for a round to start.");
const EVENTS: Spec = counter("fedpeft_exporter_events_total", &[], "Events read from the stream.");
const PENDING: Spec =
    gauge("fedpeft_exporter_events_pending", &[], "Events in the stream that are still to be read.");

const ALL: [&Spec; 26] = [
    &RUN_INFO,
    &ROUNDS,
    &ROUND,
    &OPEN_ROUND,
    &PLANNED,
    &BYTES,
    &PAYLOAD,
    &CLIENT_BYTES,
    &ROUND_BYTES,
    &FULL_BYTES,
    &ADAPTER,
    &BACKBONE,
    &LOSS,
    &ACCURACY,
    &TRAIN_LOSS,
    &EPSILON,
    &CLIP_NORM,
    &COHORT,
    &SECONDS,
    &SECURE,
    &ACCEPTED,
    &REJECTED,
    &PRESENT,
    &NEEDED,
    &EVENTS,
    &PENDING,
];

pub(crate) struct LedgerMetrics {
    exporter: Exporter,
    descriptions: Vec<Desc>,
}

impl LedgerMetrics {
    pub fn new(exporter: Exporter) -> prometheus::Result<Self> {
        let describe = |spec: &&Spec| {
            let labels = spec.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(spec.name.to_owned(), spec.help.to_owned(), labels, HashMap::new())
        };
        Ok(Self { exporter, descriptions: ALL.iter().map(describe).collect::<Result<_, _>>()? })
    }
}

impl Collector for LedgerMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let ledger = self.exporter.lock();
        let mut page = Page::default();
        page.add(&EVENTS, &[], ledger.events() as f64);
        page.add(&PENDING, &[], ledger.pending() as f64);
        for (id, run) in ledger.runs() {
            page.add_run(id.as_str(), run);
            page.add_clients(id.as_str(), run, ledger.limits().clients);
        }
        page.0.into_values().collect()
    }
}

#[derive(Default)]
struct Page(BTreeMap<&'static str, MetricFamily>);

impl Page {
    fn add_run(&mut self, id: &str, run: &Run) {
        if !run.status.is_empty() {
            self.add(&RUN_INFO, &[id, &run.method, run.status], 1.0);
            self.add(&PLANNED, &[id], run.rounds_planned.into());
            self.add(&ADAPTER, &[id, &run.method], run.adapter_values as f64);
            self.add(&BACKBONE, &[id], run.backbone_values as f64);
        }
        self.add(&ROUNDS, &[id], run.rounds_closed as f64);
        self.add(&ROUND, &[id], run.round.into());
        self.add(&FULL_BYTES, &[id], run.full_finetuning_bytes());
        self.add(&ACCEPTED, &[id], run.accepted as f64);
        self.add(&REJECTED, &[id], run.rejected as f64);
        let present = [
            (&OPEN_ROUND, run.open_round.map(f64::from)),
            (&LOSS, run.loss),
            (&ACCURACY, run.accuracy),
            (&TRAIN_LOSS, run.train_loss),
            (&EPSILON, run.privacy.map(|privacy| privacy.epsilon)),
            (&CLIP_NORM, run.privacy.map(|privacy| privacy.clip_norm)),
            (&PRESENT, run.clients_present.map(f64::from)),
            (&NEEDED, run.clients_needed.map(f64::from)),
        ];
        for (spec, value) in present {
            if let Some(value) = value {
                self.add(spec, &[id], value);
            }
        }
        for ((direction, kind), count) in &run.bytes {
            self.add(&BYTES, &[id, direction.label(), kind.label()], *count as f64);
        }
        for ((direction, kind), count) in &run.payload {
            self.add(&PAYLOAD, &[id, direction.label(), kind.label()], *count as f64);
        }
        for (round, bytes) in &run.recent {
            for ((direction, kind), count) in bytes {
                let labels = [id, &round.to_string(), direction.label(), kind.label()];
                self.add(&ROUND_BYTES, &labels, *count as f64);
            }
        }
        for (stage, clients) in &run.secure {
            self.add(&SECURE, &[id, stage.word()], f64::from(*clients));
        }
        if run.rounds_closed > 0 {
            for outcome in ["accepted", "rejected", "failed", "dropped"] {
                let count = run.outcomes.get(outcome).copied().unwrap_or(0);
                self.add(&COHORT, &[id, outcome], count as f64);
            }
            self.add_seconds(id, run);
        }
    }

    fn add_clients(&mut self, id: &str, run: &Run, count: usize) {
        if count == 0 {
            return;
        }
        for (name, (up, down)) in run.clients.top(count) {
            self.add(&CLIENT_BYTES, &[id, name, Direction::Up.label()], up as f64);
            self.add(&CLIENT_BYTES, &[id, name, Direction::Down.label()], down as f64);
        }
    }

    fn add_seconds(&mut self, id: &str, run: &Run) {
        let seconds = &run.seconds;
        for (phase, value) in [
            ("select", seconds.select),
            ("broadcast", seconds.broadcast),
            ("train", seconds.train),
            ("collect", seconds.collect),
            ("aggregate", seconds.aggregate),
            ("evaluate", seconds.evaluate),
            ("total", seconds.total),
        ] {
            self.add(&SECONDS, &[id, phase], value);
        }
    }

    fn add(&mut self, spec: &'static Spec, values: &[&str], value: f64) {
        let family = self.0.entry(spec.name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(spec.name.to_owned());
            family.set_help(spec.help.to_owned());
            family.set_field_type(spec.kind);
            family
        });
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        let mut labels: Vec<LabelPair> = spec.labels.iter().zip(values).map(pair).collect();
        labels.sort_by(|a, b| a.name().cmp(b.name()));
        let mut metric = Metric::from_label(labels);
        if spec.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        family.mut_metric().push(metric);
    }
}
