//! What a report says, as tables.

use std::{cmp::Reverse, collections::BTreeMap};

use fedpeft_page::{Table, grouped};
use fedpeft_protocol::{
    ClientId, Round,
    round::{ClientOutcome, ClientReport, RoundReport},
};

use super::Report;
use crate::output;

/// Rows of tables on the page whose length the clients decide.
const MOST: usize = 200;

/// Bytes that a client fetches before its first training, and not again.
pub(super) fn once(report: &RoundReport) -> u64 {
    ["down.backbone", "down.artifacts"].iter().filter_map(|kind| report.bytes_by_kind.get(*kind)).sum()
}

/// Models that full fine-tuning would have sent in a round: to each client with a task, from each whose update counts.
pub(super) fn models(report: &RoundReport) -> u64 {
    let answered = report.clients.iter().filter(|client| is_accepted(client)).count();
    (report.clients.len() + answered) as u64
}

/// Bytes that full fine-tuning would have sent in all rounds, every parameter in 32-bit floats, where that is known.
pub(super) fn full_fine_tuning(report: &Report) -> Option<f64> {
    let bytes =
        4.0 * report.totals.backbone_values? as f64 * report.rounds.iter().map(models).sum::<u64>() as f64;
    (bytes > 0.0).then_some(bytes)
}

/// Whether an update is in the sum.
pub(super) fn is_accepted(client: &ClientReport) -> bool {
    matches!(client.outcome, ClientOutcome::Accepted { .. })
}

fn optional(value: Option<f64>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// A row for every round, of numbers as they are: for programs.
pub fn by_round(report: &Report) -> Table {
    let mut table = Table::new(&[
        "round",
        "accuracy",
        "loss",
        "train_loss",
        "sampled",
        "accepted",
        "bytes_up",
        "bytes_down",
        "bytes_once",
        "cumulative_bytes",
        "select_seconds",
        "broadcast_seconds",
        "train_seconds",
        "collect_seconds",
        "aggregate_seconds",
        "evaluate_seconds",
        "seconds",
        "epsilon",
        "adapter_sha256",
    ]);
    let mut cumulative = 0u64;
    for round in &report.rounds {
        cumulative = cumulative.saturating_add(round.bytes_up).saturating_add(round.bytes_down);
        let seconds = &round.seconds;
        table.rows.push(vec![
            round.round.to_string(),
            optional(round.accuracy),
            optional(round.loss),
            round.train_loss.to_string(),
            round.clients.len().to_string(),
            round.clients.iter().filter(|client| is_accepted(client)).count().to_string(),
            round.bytes_up.to_string(),
            round.bytes_down.to_string(),
            once(round).to_string(),
            cumulative.to_string(),
            seconds.select.to_string(),
            seconds.broadcast.to_string(),
            seconds.train.to_string(),
            seconds.collect.to_string(),
            seconds.aggregate.to_string(),
            seconds.evaluate.to_string(),
            seconds.total.to_string(),
            optional(round.privacy.map(|privacy| privacy.epsilon)),
            round.adapter.to_string(),
        ]);
    }
    table
}

/// A row for every round, for people.
pub(super) fn rounds(report: &Report) -> Table {
    let private = report.rounds.iter().any(|round| round.privacy.is_some());
    let header =
        ["round", "accuracy", "loss", "training loss", "updates", "bytes up", "bytes down", "seconds"];
    let mut table = Table::new(&header);
    if private {
        table.header.push("epsilon".to_owned());
    }
    let four = |value: Option<f64>| value.map(|value| format!("{value:.4}")).unwrap_or_default();
    for round in &report.rounds {
        let accepted = round.clients.iter().filter(|client| is_accepted(client)).count();
        let mut row = vec![
            round.round.to_string(),
            four(round.accuracy),
            four(round.loss),
            four(Some(round.train_loss).filter(|loss| *loss != 0.0)),
            format!("{accepted} of {}", round.clients.len()),
            grouped(round.bytes_up),
            grouped(round.bytes_down),
            format!("{:.2}", round.seconds.total),
        ];
        if private {
            row.push(round.privacy.map(|privacy| format!("{:.3}", privacy.epsilon)).unwrap_or_default());
        }
        table.rows.push(row);
    }
    table
}

/// What is in the way of updates: why, how often, when.
pub(super) fn trouble(report: &Report) -> Table {
    let mut reasons: BTreeMap<(&str, &str), (u64, Round, Round)> = BTreeMap::new();
    for round in &report.rounds {
        for client in &round.clients {
            let reason = match &client.outcome {
                ClientOutcome::Accepted { .. } => continue,
                ClientOutcome::Rejected { reason } | ClientOutcome::Failed { reason } => reason.as_str(),
                ClientOutcome::Dropped => "nothing came before the round closed",
                ClientOutcome::Surplus => "the round had all the updates it wanted",
                ClientOutcome::Training => "it still trains, for a later round",
            };
            let entry =
                reasons.entry((client.outcome.word(), reason)).or_insert((0, round.round, round.round));
            (entry.0, entry.2) = (entry.0 + 1, round.round);
        }
    }
    let mut sorted: Vec<_> = reasons.into_iter().collect();
    sorted.sort_by_key(|(_, (count, ..))| Reverse(*count));
    let rows = sorted.iter().map(|((word, reason), (count, first, last))| {
        let when = if first == last { first.to_string() } else { format!("{first} to {last}") };
        vec![(*word).to_owned(), (*reason).to_owned(), count.to_string(), when]
    });
    cut(Table { rows: rows.collect(), ..Table::new(&["outcome", "reason", "times", "rounds"]) })
}

/// What one client did in all rounds.
#[derive(Default)]
struct Work {
    sampled: u64,
    accepted: u64,
    examples: u64,
    up: u64,
    down: u64,
    seconds: f64,
    accuracy: Option<f64>,
    epsilon: Option<f64>,
}

/// A row for every client, those with the most bytes first.
pub(super) fn clients(report: &Report) -> Table {
    let mut clients: BTreeMap<&ClientId, Work> = BTreeMap::new();
    for client in report.rounds.iter().flat_map(|round| &round.clients) {
        let work = clients.entry(&client.client).or_default();
        work.sampled += 1;
        work.up = work.up.saturating_add(client.bytes_up);
        work.down = work.down.saturating_add(client.bytes_down);
        if is_accepted(client) {
            work.accepted += 1;
            work.seconds += client.train_seconds;
            work.examples = client.examples;
        }
        work.accuracy = client.personal.and_then(|own| own.accuracy).or(work.accuracy);
        work.epsilon = client.epsilon.or(work.epsilon);
    }
    let mut header =
        vec!["client", "tasks", "updates", "examples", "bytes up", "bytes down", "seconds per update"];
    let personal = clients.values().any(|work| work.accuracy.is_some());
    let private = clients.values().any(|work| work.epsilon.is_some());
    header.extend(personal.then_some("accuracy of its own model"));
    header.extend(private.then_some("epsilon of its examples"));
    let mut sorted: Vec<_> = clients.into_iter().collect();
    sorted.sort_by_key(|(_, work)| Reverse(work.up.saturating_add(work.down)));
    let number = |value: Option<f64>| value.map(|value| format!("{value:.4}")).unwrap_or_default();
    let rows = sorted.iter().map(|(client, work)| {
        let mean = (work.accepted > 0).then(|| format!("{:.2}", work.seconds / work.accepted as f64));
        let mut row = vec![
            client.to_string(),
            work.sampled.to_string(),
            work.accepted.to_string(),
            grouped(work.examples),
            grouped(work.up),
            grouped(work.down),
            mean.unwrap_or_default(),
        ];
        row.extend(personal.then(|| number(work.accuracy)));
        row.extend(private.then(|| number(work.epsilon)));
        row
    });
    cut(Table { rows: rows.collect(), ..Table::new(&header) })
}

/// Bytes of the run by direction and kind.
pub(super) fn bytes(report: &Report) -> Table {
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, count) in report.rounds.iter().flat_map(|round| &round.bytes_by_kind) {
        let sum = kinds.entry(kind).or_default();
        *sum = sum.saturating_add(*count);
    }
    let rows = kinds.iter().map(|(kind, count)| {
        let (direction, kind) = kind.split_once('.').unwrap_or(("", kind));
        vec![direction.to_owned(), kind.to_owned(), grouped(*count), output::bytes(*count)]
    });
    Table { rows: rows.collect(), ..Table::new(&["direction", "kind", "bytes", ""]) }
}

/// Rounds by digest, for those who check them.
pub(super) fn digests(report: &Report) -> Table {
    let rows = report.rounds.iter().map(|round| {
        [
            round.round.to_string(),
            round.epoch.to_string(),
            round.adapter.to_string(),
            round.ledger.to_string(),
        ]
        .into()
    });
    Table { rows: rows.collect(), ..Table::new(&["round", "epoch", "adapter", "ledger"]) }
}

/// The table without rows that nobody would read.
fn cut(mut table: Table) -> Table {
    let more = table.rows.len().saturating_sub(MOST);
    if more > 0 {
        table.rows.truncate(MOST);
        let mut last = vec![format!("and {more} more, see the JSON report")];
        last.resize(table.header.len(), String::new());
        table.rows.push(last);
    }
    table
}
