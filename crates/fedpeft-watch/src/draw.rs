//! A state on a screen.

use fedpeft_page::{bytes, grouped, percent};
use fedpeft_protocol::run::RunStatus;
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Chart, Dataset, GraphType, LineGauge, Paragraph, Row, Sparkline, Table},
};

use crate::state::{Closed, Phase, State};

const GOOD: Color = Color::Green;
const BAD: Color = Color::Red;
const CURVE: Color = Color::Cyan;
/// Terminals lower than this have no room for curves.
const LOW: u16 = 18;
/// Terminals narrower than this have one column.
const NARROW: u16 = 72;

/// Draws a state as it is at a moment, `now_ms` milliseconds after the Unix epoch.
pub fn draw(frame: &mut Frame<'_>, state: &State, now_ms: u64) {
    let area = frame.area();
    let curves = if area.height < LOW { Constraint::Length(0) } else { Constraint::Fill(3) };
    let parts = [Constraint::Length(4), curves, Constraint::Length(5), Constraint::Fill(2)];
    let [head, middle, facts, events] = Layout::vertical(parts).areas(area);
    draw_head(frame, head, state, now_ms);
    if middle.height > 0 {
        let [left, right] = halves(middle, area.width);
        draw_curve(frame, left, state);
        draw_rounds(frame, right, state);
    }
    let [left, right] = halves(facts, area.width);
    draw_cohort(frame, left, state);
    draw_bytes(frame, right, state);
    draw_events(frame, events, state);
}

/// Two columns, where there is room for them.
fn halves(area: Rect, width: u16) -> [Rect; 2] {
    let right = if width < NARROW { Constraint::Length(0) } else { Constraint::Fill(1) };
    Layout::horizontal([Constraint::Fill(1), right]).areas(area)
}

fn block(title: &str) -> Block<'_> {
    Block::bordered().border_style(Style::new().dark_gray()).title(Span::from(title).bold().fg(Color::Reset))
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, state: &State, now_ms: u64) {
    let method = state.method.as_deref().map_or_else(String::new, |method| format!(" {method} of"));
    let title = format!(" run {},{method} {} ", state.run, state.spec.model.name);
    let outer = block(&title).title(Line::from(" q leaves ").right_aligned().dark_gray());
    let inner = outer.inner(area);
    frame.render_widget(outer, area);
    let [gauge, phase] = Layout::vertical([Constraint::Length(1), Constraint::Length(1)]).areas(inner);
    let (done, asked) = (state.rounds.len(), state.spec.rounds);
    let ratio = (done as f64 / f64::from(asked.max(1))).clamp(0.0, 1.0);
    let gauge_widget = LineGauge::default()
        .ratio(ratio)
        .label(format!("{done} of {asked} rounds"))
        .filled_symbol("━")
        .unfilled_symbol("─")
        .filled_style(Style::new().fg(CURVE))
        .unfilled_style(Style::new().dark_gray());
    frame.render_widget(gauge_widget, gauge);
    frame.render_widget(Paragraph::new(phase_line(state, now_ms)), phase);
}

fn phase_line(state: &State, now_ms: u64) -> Line<'static> {
    let open = state.open.as_ref();
    match state.phase() {
        Phase::Pending => Line::from("pending: nobody has taken it up yet").yellow(),
        Phase::Waiting { present, needed } => {
            Line::from(format!("waiting for clients: {present} of {needed} are present")).yellow()
        }
        Phase::Between => Line::from("between rounds"),
        Phase::Training => {
            let (round, answered, sampled) =
                open.map_or((0, 0, 0), |open| (open.round, open.answers.len(), open.sampled));
            let left = state.deadline_ms().map_or(0, |deadline| deadline.saturating_sub(now_ms));
            let mut spans =
                vec![Span::from(format!("round {round} trains: {answered} of {sampled} have answered, "))];
            spans.push(match left {
                0 => Span::from("its deadline is over").fg(BAD),
                ms => Span::from(format!("at most {} left", clock(ms.div_ceil(1000)))).bold(),
            });
            Line::from(spans)
        }
        Phase::Closing => {
            let round = open.map_or(0, |open| open.round);
            Line::from(format!("round {round} closes: aggregating and evaluating"))
        }
        Phase::Ended => match &state.status {
            RunStatus::Failed { reason } => Line::from(format!("failed: {reason}")).fg(BAD),
            RunStatus::Cancelled => Line::from("cancelled").yellow(),
            _ => Line::from("completed").fg(GOOD),
        },
    }
}

/// Seconds as `4:12` or `1:04:12`.
fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Accuracy by round, or the loss where there is no accuracy.
fn draw_curve(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let points = |of: fn(&Closed) -> Option<f64>| -> Vec<(f64, f64)> {
        state.rounds.iter().filter_map(|(round, own)| Some((f64::from(*round), of(own)?))).collect()
    };
    let (accuracy, loss) = (points(|own| own.accuracy), points(|own| own.loss));
    let (name, points, top) = if accuracy.is_empty() && !loss.is_empty() {
        let highest = loss.iter().map(|point| point.1).fold(0.0, f64::max);
        ("loss", loss, 1.05 * highest)
    } else {
        ("accuracy", accuracy, 1.0)
    };
    let Some((_, last)) = points.last() else {
        frame.render_widget(Paragraph::new("not evaluated yet").dark_gray().block(block(" accuracy ")), area);
        return;
    };
    let title = format!(" {name} {last:.4} ");
    let (end, top) = (f64::from(state.spec.rounds.max(1)), if top > 0.0 { top } else { 1.0 });
    let data = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).fg(CURVE).data(&points);
    let up = [0.0, top / 2.0, top].map(|at| format!("{at:.2}"));
    let along = ["0".to_owned(), format!("round {}", state.spec.rounds)];
    let grey = Style::new().dark_gray();
    let chart = Chart::new(vec![data])
        .block(block(&title))
        .x_axis(Axis::default().bounds([0.0, end]).labels(along).style(grey))
        .y_axis(Axis::default().bounds([0.0, top]).labels(up).style(grey));
    frame.render_widget(chart, area);
}

/// The latest rounds as a table.
fn draw_rounds(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let measures_accuracy = state.rounds.values().any(|own| own.accuracy.is_some());
    let measured = |own: &Closed| if measures_accuracy { own.accuracy } else { own.loss };
    let room = usize::from(area.height.saturating_sub(3));
    let rows = state.rounds.iter().rev().take(room).map(|(round, own)| {
        let cells = [
            round.to_string(),
            measured(own).map_or_else(|| "-".to_owned(), |value| format!("{value:.4}")),
            format!("{}/{}", own.accepted, own.sampled),
            bytes(own.up),
            bytes(own.down),
            format!("{:.1}", own.seconds),
        ];
        Row::new(cells.map(|cell| Line::from(cell).alignment(Alignment::Right)))
    });
    let measure = if measures_accuracy { "accuracy" } else { "loss" };
    let header = ["round", measure, "updates", "up", "down", "s"];
    let header = Row::new(header.map(|name| Line::from(name).alignment(Alignment::Right))).bold();
    let widths = [5, 8, 7, 9, 9, 5].map(Constraint::Length);
    frame.render_widget(Table::new(rows, widths).header(header).block(block(" rounds ")), area);
}

/// What the clients do: in the open round, and did in all others.
fn draw_cohort(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let mut now = vec![Span::from("now    ")];
    match &state.open {
        None => now.push(Span::from("no round is open").dark_gray()),
        Some(open) => {
            let accepted = open.answers.values().filter(|counts| **counts).count();
            let refused = open.answers.len() - accepted;
            let out = open.sampled.saturating_sub(open.answers.len());
            now.push(Span::from(format!("{accepted} accepted")).fg(GOOD));
            now.push(Span::from(format!(", {out} training")));
            now.extend((refused > 0).then(|| Span::from(format!(", {refused} refused")).fg(BAD)));
        }
    }
    let accepted: usize = state.rounds.values().map(|round| round.accepted).sum();
    let mut before = vec![Span::from("so far "), Span::from(format!("{accepted} accepted")).fg(GOOD)];
    for word in ["dropped", "rejected", "failed", "surplus", "training"] {
        let count: usize = state.rounds.values().filter_map(|round| round.others.get(word)).sum();
        let span = Span::from(format!(", {count} {word}"));
        let is_bad = matches!(word, "dropped" | "rejected" | "failed");
        before.extend((count > 0).then(|| if is_bad { span.fg(BAD) } else { span }));
    }
    let mut lines = vec![Line::from(now), Line::from(before)];
    lines.extend(epsilon(state));
    frame.render_widget(Paragraph::new(lines).block(block(" clients ")), area);
}

/// What is spent of the budget.
fn epsilon(state: &State) -> Option<Line<'static>> {
    let budget = state.spec.privacy.as_ref()?;
    let spent = state.rounds.values().rev().find_map(|round| round.privacy).map_or(0.0, |own| own.epsilon);
    let line = format!("epsilon {spent:.3} of {} spent at delta {}", budget.epsilon, budget.delta);
    let line = Line::from(line);
    Some(if spent > 0.9 * budget.epsilon { line.yellow() } else { line })
}

/// What crossed the wire.
fn draw_bytes(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let outer = block(" bytes ");
    let inner = outer.inner(area);
    frame.render_widget(outer, area);
    let rows = [Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1)];
    let [sums, share, spark] = Layout::vertical(rows).areas(inner);
    let (up, down) = state.bytes();
    frame.render_widget(Paragraph::new(format!("{} up, {} down", bytes(up), bytes(down))), sums);
    let sent = up.saturating_add(down) as f64;
    let line = state.full_bytes().map(|full| format!("{} of full fine-tuning", percent(sent / full)));
    let line = line.unwrap_or_else(|| format!("{} bytes", grouped(up.saturating_add(down))));
    frame.render_widget(Paragraph::new(line).dark_gray(), share);
    // As many rounds as there are columns.
    let skipped = state.rounds.len().saturating_sub(usize::from(spark.width));
    let by_round = state.rounds.values().skip(skipped).map(|round| round.up);
    let data: Vec<u64> = by_round.collect();
    frame.render_widget(Sparkline::default().data(&data).fg(CURVE), spark);
}

/// What happened, the latest last.
fn draw_events(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let room = usize::from(area.height.saturating_sub(2));
    let skipped = state.happened.len().saturating_sub(room);
    let lines = state.happened.iter().skip(skipped).map(|own| {
        let time = own.at_ms / 1000 % 86_400;
        let time = format!("{:02}:{:02}:{:02} ", time / 3600, time / 60 % 60, time % 60);
        let what = Span::from(own.what.clone());
        Line::from(vec![Span::from(time).dark_gray(), if own.is_bad { what.fg(BAD) } else { what }])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block(" events (UTC) ")), area);
}
