use std::{fs, path::Path};

use serde_json::json;

use super::*;

const EVIL: &str = "</pre><script>alert('x')</script>";

/// A run of two clients, one of which drops out, or says something nasty in the last round.
fn view(rounds: u32, status: serde_json::Value) -> RunView {
    let digest = Digest::of("adapter").to_string();
    let client = |name: &str, outcome: serde_json::Value| {
        let mut client = json!({
            "client": name, "examples": 5, "bytes_up": 1010, "bytes_down": 1020, "loss": 0.5, "train_seconds": 0.25,
        });
        client.as_object_mut().unwrap().extend(outcome.as_object().unwrap().clone());
        client
    };
    let round = |number: u32| {
        let other = if number == 2 {
            json!({"outcome": "rejected", "reason": EVIL})
        } else {
            json!({"outcome": "dropped"})
        };
        json!({
            "round": number, "loss": 0.4, "accuracy": 0.8, "train_loss": 0.5, "bytes_up": 1010, "bytes_down": 502_040,
            "bytes_by_kind": {
                "up.adapter": 1000, "up.control": 10, "down.adapter": 2000, "down.control": 40, "down.backbone": 500_000,
            },
            "clients": [client("a", json!({"outcome": "accepted", "digest": digest})), client("b", other)],
            "seconds": {"select": 0, "broadcast": 0, "train": 1, "collect": 0, "aggregate": 0, "evaluate": 0.5, "total": 1.5},
            "privacy": {"noise_multiplier": 1.0, "clip_norm": 0.5, "epsilon": f64::from(number)},
            "adapter": digest,
        })
    };
    let privacy = json!({"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0});
    serde_json::from_value(json!({
        "record": {
            "version": 1, "run": "r", "manifest": digest, "status": status, "round": rounds, "adapter": digest,
            "spec": {"model": {"name": "m"}, "rounds": 2, "cohort": 2, "privacy": privacy},
            "open": null, "epoch": 1, "created_ms": 0, "updated_ms": 0,
        },
        "rounds": (1..=rounds).map(round).collect::<Vec<_>>(),
    }))
    .unwrap()
}

fn completed() -> RunView {
    view(2, json!({"state": "completed"}))
}

fn html(mut report: Report) -> String {
    report.totals.adapter_bytes = Some(1000);
    report.totals.backbone_values = Some(100_000);
    report.text(Format::Html).unwrap()
}

#[test]
fn the_report_sums_up_and_says_what_an_update_costs() {
    let view = completed();
    let (adapter, config) = (view.record.adapter.to_string(), json!({"run": &view.record.spec}));
    let processes = Processes { adapter_bytes: Some(1000), ..Processes::default() };
    let report = Report::of_processes(view, config, processes);
    assert_eq!((report.totals.bytes_up, report.totals.bytes_down), (2020, 1_004_080));
    let summary = report.summary();
    assert!(summary.contains("completed after 2 rounds in 3.0 s, accuracy 0.8000"), "{summary}");
    assert!(summary.contains("\nepsilon 2.000 of 8.0 spent at delta 0.001,"), "{summary}");
    assert!(
        summary.contains("\nan update takes 1010 B on the wire, 1.00 % more than the 1000 B"),
        "{summary}"
    );
    assert!(summary.ends_with(&adapter), "{summary}");
}

#[test]
fn the_file_has_the_promised_fields_and_appears_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/report.json");
    let report = Report::new(completed());
    report.write(&path, Format::of(&path).unwrap()).unwrap();
    let read: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for field in
        ["config", "versions", "rounds", "totals", "manifest_sha256", "adapter_sha256", "ledger_sha256"]
    {
        assert!(!read[field].is_null(), "{field}");
    }
    assert_eq!(read["rounds"][0]["clients"][1]["outcome"], "dropped");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    // What is written can be read, and makes the same page.
    let again = Report::read(&path).unwrap();
    assert_eq!(again.text(Format::Html).unwrap(), report.text(Format::Html).unwrap());
    let error = report.write(Path::new("/proc/nowhere/r.json"), Format::Json).unwrap_err();
    assert!(output::one_line(&error).contains("the report cannot be written"));
}

#[test]
fn the_name_of_a_file_says_what_is_in_it() {
    let format = |name: &str| Format::of(Path::new(name));
    assert_eq!(format("-").unwrap(), Format::Json);
    assert_eq!(format("a/r.HTML").unwrap(), Format::Html);
    assert_eq!(format("r.csv").unwrap(), Format::Csv);
    let error = format("r.pdf").unwrap_err().to_string();
    assert_eq!(error, "a report cannot be written as .pdf: end the name with .html, .json or .csv");
}

#[test]
fn csv_has_a_line_per_round() {
    let text = Report::new(completed()).text(Format::Csv).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0]
            .starts_with("round,accuracy,loss,train_loss,sampled,accepted,bytes_up,bytes_down,bytes_once,")
    );
    assert!(
        lines[2].starts_with("2,0.8,0.4,0.5,2,1,1010,502040,500000,1006100,0,0,1,0,0,0.5,1.5,2,"),
        "{}",
        lines[2]
    );
    assert_eq!(lines.len(), 3);
}

#[test]
fn a_page_shows_everything_and_runs_nothing() {
    let html = html(Report::new(completed()));
    for plot in [
        "accuracy",
        "loss",
        "accuracy-by-bytes",
        "bytes",
        "cumulative-bytes",
        "seconds",
        "clients",
        "epsilon",
    ] {
        assert!(html.contains(&format!("id=\"{plot}\"")), "no plot {plot}");
    }
    for text in [
        "<h1>Run r</h1>",
        "<td>completed</td>",
        "<td>2 of 2</td>",
        "250, 0.25 % of the backbone&#39;s 100,000",
        "full fine-tuning",
        "<td>rejected</td><td>&lt;/pre&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</td><td>1</td><td>2</td>",
        "nothing came before the round closed",
        "[run.privacy]",
        &Digest::of("adapter").to_string(),
    ] {
        assert!(html.contains(text), "no {text} in {html}");
    }
    assert!(!html.contains("<script") && !html.contains("src=") && !html.contains("href="));
}

#[test]
fn runs_that_are_young_or_failed_have_a_page_too() {
    let young = html(Report::new(view(0, json!({"state": "pending"}))));
    assert!(young.contains("No round is committed yet.") && !young.contains("<svg"), "{young}");
    let running = html(Report::new(view(1, json!({"state": "running"}))));
    assert!(running.contains("<td>1 of 2</td>") && running.matches("<svg").count() == 8, "{running}");
    let failed = html(Report::new(view(1, json!({"state": "failed", "reason": EVIL}))));
    assert!(failed.contains("failed: &lt;/pre&gt;") && !failed.contains("<script"), "{failed}");
}

#[test]
fn what_is_not_known_is_left_out() {
    let mut bare = view(2, json!({"state": "completed"}));
    for round in &mut bare.rounds {
        (round.accuracy, round.loss, round.privacy, round.train_loss) = (None, None, None, 0.0);
        round.bytes_by_kind.clear();
        round.clients.truncate(1);
    }
    let html = Report::new(bare).text(Format::Html).unwrap();
    assert!(
        !html.contains("id=\"accuracy\"") && !html.contains("id=\"epsilon\"") && !html.contains("NaN"),
        "{html}"
    );
    assert!(html.contains("Every client with a task sent an update that counts."));
    assert!(!html.contains("full fine-tuning"));
}
