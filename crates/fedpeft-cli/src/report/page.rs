//! The report as a page.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use fedpeft_page::{Page, grouped};
use fedpeft_protocol::run::RunStatus;

use super::{Report, plots, rows};
use crate::output;

/// The page.
pub(super) fn html(report: &Report) -> Result<String> {
    let mut page = Page::new(&format!("Run {}", report.run));
    page.facts(facts(report));
    if report.rounds.is_empty() {
        page.paragraph("No round is committed yet.");
    } else {
        page.heading("Plots");
        page.figures(&plots::figures(report)?);
        page.heading("Rounds");
        page.table(&rows::rounds(report));
        page.heading("Clients");
        page.table(&rows::clients(report));
        let trouble = rows::trouble(report);
        if trouble.rows.is_empty() {
            page.paragraph("Every client with a task sent an update that counts.");
        } else {
            page.heading("Tasks without an update");
            page.table(&trouble);
        }
        page.heading("Bytes");
        page.paragraph(
            "Bytes of messages, with their subjects and headers, and of blobs: what crossed the wire, up from the clients \
             and down to them. Clients fetch backbone and artifacts once.",
        );
        page.table(&rows::bytes(report));
    }
    page.heading("What was asked for");
    page.code(&spec(report));
    page.heading("Digests");
    page.paragraph(
        "SHA-256. `fedpeft run verify` checks the ledger, and the adapters where the updates were kept.",
    );
    page.facts(digests(report));
    if !report.rounds.is_empty() {
        page.table(&rows::digests(report));
    }
    Ok(page.html())
}

/// The run in a few lines.
fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let totals = &report.totals;
    let asked = report.config["run"]["rounds"].as_u64();
    let mut facts = vec![("status", status(&report.status))];
    facts.extend(report.method.clone().map(|method| ("method", method)));
    let rounds = report.rounds.len();
    facts.push(("rounds", asked.map_or_else(|| rounds.to_string(), |asked| format!("{rounds} of {asked}"))));
    if let Some(accuracy) = report.rounds.iter().rev().find_map(|round| round.accuracy) {
        let measured = report.rounds.iter().filter_map(|round| Some((round.accuracy?, round.round)));
        let (best, round) = measured.fold((accuracy, 0), |best, own| if own.0 > best.0 { own } else { best });
        let best = if round == 0 { String::new() } else { format!(", at best {best:.4} in round {round}") };
        facts.push(("accuracy", format!("{accuracy:.4}{best}")));
    }
    let sent = totals.bytes_up.saturating_add(totals.bytes_down);
    let share = rows::full_fine_tuning(report).map(|full| output::percent(sent as f64 / full));
    let share =
        share.map_or_else(String::new, |share| format!(": {share} of what full fine-tuning would have sent"));
    let (up, down) = (output::bytes(totals.bytes_up), output::bytes(totals.bytes_down));
    facts.push(("on the wire", format!("{up} up, {down} down{share}")));
    facts.extend(report.update_cost().map(|cost| ("an update", cost)));
    facts.extend(trained(report).map(|trained| ("trained values", trained)));
    facts.extend(report.privacy_spent().map(|spent| ("privacy", spent)));
    facts.push(("time of all rounds", format!("{:.1} s", totals.seconds)));
    if report.created_ms > 0 {
        facts.push(("created", time(report.created_ms)));
        facts.push(("last change", time(report.updated_ms)));
    }
    let versions = report.versions.iter().map(|(name, version)| format!("{name} {version}"));
    facts.push(("versions", versions.collect::<Vec<_>>().join(", ")));
    let memory = totals.peak_rss_bytes.iter().map(|(name, own)| format!("{name} {}", output::bytes(*own)));
    let memory = memory.collect::<Vec<_>>().join(", ");
    facts.extend((!memory.is_empty()).then_some(("peak memory", memory)));
    facts
}

fn status(status: &RunStatus) -> String {
    match status {
        RunStatus::Failed { reason } => format!("failed: {reason}"),
        other => other.word().to_owned(),
    }
}

/// How small the adapter is.
fn trained(report: &Report) -> Option<String> {
    let values = report.totals.adapter_bytes? / 4;
    let backbone = report.totals.backbone_values.filter(|values| *values > 0)?;
    let share = output::percent(values as f64 / backbone as f64);
    Some(format!("{}, {share} of the backbone's {}", grouped(values), grouped(backbone)))
}

fn time(ms: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

fn digests(report: &Report) -> Vec<(&'static str, String)> {
    let mut digests = Vec::new();
    digests
        .extend(report.manifest_sha256.map(|manifest| ("manifest of the artifacts", manifest.to_string())));
    digests.push(("adapter", report.adapter_sha256.to_string()));
    digests.push(("ledger", report.ledger_sha256.to_string()));
    digests
}

/// As in `run.toml`, where that can say it.
fn spec(report: &Report) -> String {
    let toml = toml::to_string_pretty(&without_nulls(report.config.clone()));
    toml.unwrap_or_else(|_| format!("{:#}", report.config))
}

/// TOML has no word for nothing.
fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let some = map.into_iter().filter(|(_, own)| !own.is_null());
            Value::Object(some.map(|(name, own)| (name, without_nulls(own))).collect())
        }
        other => other,
    }
}
