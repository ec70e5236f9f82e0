//! What a report shows, as plots over rounds.

use anyhow::Result;
use fedpeft_page::{Chart, Figure, Line, Marks, PageError, Point, XAxis, YAxis};
use fedpeft_protocol::round::{PhaseSeconds, RoundReport};

use super::{Report, rows};

/// Outcomes of clients, from the bottom of the bars to their top.
const OUTCOMES: [&str; 6] = ["accepted", "training", "surplus", "dropped", "failed", "rejected"];
/// Bytes further apart than this do not fit a linear axis.
const FAR: f64 = 50.0;

/// All plots of which the report has anything to show.
pub(super) fn figures(report: &Report) -> Result<Vec<Figure>> {
    let charts = [
        ("accuracy", accuracy(report)),
        ("loss", loss(report)),
        ("accuracy-by-bytes", accuracy_by_bytes(report)),
        ("bytes", bytes(report)),
        ("cumulative-bytes", cumulative(report)),
        ("seconds", seconds(report)),
        ("clients", clients(report)),
        ("epsilon", epsilon(report)),
    ];
    let drawn =
        charts.into_iter().filter(|(_, chart)| chart.lines.iter().any(|line| !line.points.is_empty()));
    let drawn = drawn.map(|(name, mut chart)| {
        chart.lines.retain(|line| !line.points.is_empty());
        chart.figure(name, format!("{} by {}", chart.title, label(&chart.x)))
    });
    Ok(drawn.collect::<Result<_, PageError>>()?)
}

fn label(x: &XAxis) -> &str {
    let (XAxis::Numbers { label, .. } | XAxis::Names { label, .. }) = x;
    label
}

/// A line with a point for every round that has one.
fn line(report: &Report, name: &str, y: impl Fn(&RoundReport) -> Option<f64>) -> Line {
    let points = report.rounds.iter().filter_map(|round| Some(Point::new(round.round, y(round)?)));
    Line { name: name.to_owned(), points: points.collect() }
}

/// A chart over rounds that is a little higher than its points.
fn by_round(title: &str, y_label: &str, marks: Marks, lines: Vec<Line>) -> Chart {
    let x = XAxis::Numbers { label: "round".to_owned(), log: false };
    let points = || lines.iter().flat_map(|line| &line.points);
    let highest = match marks {
        Marks::Lines => points().map(|point| point.y).fold(0.0, f64::max),
        Marks::Stacked => {
            let columns = lines.iter().map(|line| line.points.len()).max().unwrap_or(0);
            let height = |at: usize| -> f64 {
                lines.iter().filter_map(|line| line.points.get(at)).map(|point| point.y).sum()
            };
            (0..columns).map(height).fold(0.0, f64::max)
        }
    };
    let (title, y_label) = (title.to_owned(), y_label.to_owned());
    Chart { title, x, y_label, y: YAxis::UpTo(1.05 * highest), marks, lines }
}

fn accuracy(report: &Report) -> Chart {
    let held_out = line(report, "held out", |round| round.accuracy);
    Chart {
        y: YAxis::UpTo(tenth_above(&held_out)),
        ..by_round("accuracy", "accuracy", Marks::Lines, vec![held_out])
    }
}

/// The least tenth that no accuracy lies above.
fn tenth_above(line: &Line) -> f64 {
    let highest = line.points.iter().map(|point| point.y).fold(0.1, f64::max);
    (10.0 * highest).ceil().min(10.0) / 10.0
}

fn loss(report: &Report) -> Chart {
    let lines = vec![
        line(report, "held out", |round| round.loss),
        // Clients that train with differential privacy withhold theirs.
        line(report, "training", |round| Some(round.train_loss).filter(|loss| *loss != 0.0)),
    ];
    by_round("loss", "loss", Marks::Lines, lines)
}

fn accuracy_by_bytes(report: &Report) -> Chart {
    let sums =
        sums(report, |round| round.bytes_up + round.bytes_down - rows::once(round).min(round.bytes_down));
    let points = report.rounds.iter().zip(sums);
    let points = points.filter_map(|(round, bytes)| Some(Point::new(mib(bytes), round.accuracy?)));
    let own = Line { name: "held out".to_owned(), points: points.collect() };
    Chart {
        x: XAxis::Numbers { label: "MiB up and down, without what is fetched once".to_owned(), log: true },
        y: YAxis::UpTo(tenth_above(&own)),
        ..by_round("accuracy", "accuracy", Marks::Lines, vec![own])
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Sums of something up to every round.
fn sums(report: &Report, of: impl Fn(&RoundReport) -> u64) -> impl Iterator<Item = f64> {
    report.rounds.iter().scan(0.0, move |sum, round| {
        *sum += of(round) as f64;
        Some(*sum)
    })
}

fn bytes(report: &Report) -> Chart {
    let kib = |bytes: u64| Some(bytes as f64 / 1024.0).filter(|kib| *kib > 0.0);
    let lines = vec![
        line(report, "up", |round| kib(round.bytes_up)),
        line(report, "down", |round| kib(round.bytes_down.saturating_sub(rows::once(round)))),
        line(report, "down, once", |round| kib(rows::once(round))),
    ];
    let all = || lines.iter().flat_map(|line| &line.points).map(|point| point.y);
    let far = all().fold(0.0, f64::max) > FAR * all().fold(f64::INFINITY, f64::min);
    let chart = by_round("bytes on the wire", "KiB in the round", Marks::Lines, lines);
    if far { Chart { y: YAxis::Log, ..chart } } else { chart }
}

/// What the run sent, and what full fine-tuning would have: every parameter in 32-bit floats.
fn cumulative(report: &Report) -> Chart {
    let sent = sums(report, |round| round.bytes_up.saturating_add(round.bytes_down));
    let model = report.totals.backbone_values.map(|values| 4.0 * values as f64);
    let full = sums(report, rows::models).map(|models| models * model.unwrap_or(f64::NAN));
    let line = |name: &str, bytes: &mut dyn Iterator<Item = f64>| {
        let points = report.rounds.iter().zip(bytes).filter(|(_, bytes)| bytes.is_finite());
        let points = points.map(|(round, bytes)| Point::new(round.round, mib(bytes)));
        Line { name: name.to_owned(), points: points.collect() }
    };
    let lines = vec![line("this run", &mut { sent }), line("full fine-tuning", &mut { full })];
    Chart { y: YAxis::Log, ..by_round("bytes so far", "MiB up and down", Marks::Lines, lines) }
}

fn seconds(report: &Report) -> Chart {
    type Phase = (&'static str, fn(&PhaseSeconds) -> f64);
    let phases: [Phase; 6] = [
        ("select", |own| own.select),
        ("broadcast", |own| own.broadcast),
        ("train", |own| own.train),
        ("collect", |own| own.collect),
        ("aggregate", |own| own.aggregate),
        ("evaluate", |own| own.evaluate),
    ];
    let lines = phases.map(|(name, of)| line(report, name, |round| Some(of(&round.seconds))));
    by_round("time by phase", "seconds", Marks::Stacked, lines.into())
}

fn clients(report: &Report) -> Chart {
    let count = |round: &RoundReport, word: &str| {
        round.clients.iter().filter(|client| client.outcome.word() == word).count() as f64
    };
    let occurs = |word: &&str| report.rounds.iter().any(|round| count(round, word) > 0.0);
    let lines = OUTCOMES.into_iter().filter(occurs);
    let lines = lines.map(|word| line(report, word, |round| Some(count(round, word))));
    by_round("the cohort", "clients", Marks::Stacked, lines.collect())
}

fn epsilon(report: &Report) -> Chart {
    let budget = report.config["run"]["privacy"]["epsilon"].as_f64();
    let lines = vec![
        line(report, "spent", |round| Some(round.privacy?.epsilon)),
        line(report, "budget", |round| round.privacy.and(budget)),
    ];
    by_round("privacy", "epsilon", Marks::Lines, lines)
}
