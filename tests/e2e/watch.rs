//! `fedpeft run watch`: at a terminal, in a pipe, and for programs.

use std::{
    io::Write as _,
    process::{Child, Command, Stdio},
};

use fedpeft_testkit::NatsServer;
use serde_json::Value;

use crate::{
    services::{Services, json_of, on, publish_method},
    support::{CONFIG, Workspace, succeed, text, until},
};

/// A command at a terminal of 100 columns and 30 rows, whose keys we press: `script` makes one.
fn at_a_terminal(command: &Command, log: &std::path::Path) -> Child {
    let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy());
    let mut words = vec![quoted(command.get_program())];
    words.extend(command.get_args().map(quoted));
    let line = format!("stty cols 100 rows 30; TERM=xterm-256color exec {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", &line]).arg(log);
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// What a terminal was sent, without colours and with a blank where the cursor jumped.
fn words(sent: &str) -> String {
    let mut parts = sent.split("\u{1b}[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(0);
        text.push_str(if part[end..].starts_with('m') { "" } else { " " });
        text.push_str(part.get(end + 1..).unwrap_or_default());
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_watched_at_a_terminal_in_a_pipe_and_by_programs() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let _services = Services::start(&nats, &workspace);
    publish_method(&nats, &workspace, "head");
    let config = workspace.path("long.toml");
    std::fs::write(&config, CONFIG.replace("rounds = 3", "rounds = 400")).unwrap();
    until(|| on(&nats, &["run", "list"]).output().unwrap().status.success().then_some(()));
    succeed(on(&nats, &["run", "submit", config.to_str().unwrap(), "--name", "long"]));

    // At a terminal it fills the screen, follows, and is left with q while the run goes on.
    let log = workspace.path("screen.log");
    let mut child = at_a_terminal(&on(&nats, &["run", "watch", "long"]), &log);
    let screen = || String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    until(|| words(&screen()).contains("of 400 rounds").then_some(()));
    child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    let status = child.wait().unwrap();
    let shown = screen();
    assert!(status.success(), "{shown}");
    assert!(
        shown.contains("\u{1b}[?1049h") && shown.contains("\u{1b}[?1049l"),
        "the screen is not given back: {shown:?}"
    );
    for expected in ["run long", "of 400 rounds", "clients", "bytes", "events (UTC)", "run long goes on"] {
        assert!(words(&shown).contains(expected), "no {expected:?} in {shown:?}");
    }
    // There must be rounds to tell of.
    until(|| {
        let view = json_of(on(&nats, &["run", "get", "long", "--json"]));
        (view["record"]["round"].as_u64() >= Some(2)).then_some(())
    });
    let picture = workspace.path("screen.svg");
    succeed(on(&nats, &["run", "watch", "long", "--svg", picture.to_str().unwrap()]));
    assert!(std::fs::read_to_string(&picture).unwrap().contains("of 400 rounds"));
    succeed(on(&nats, &["run", "cancel", "long"]));

    // For programs every event is a line; a run that was cancelled ends with an error there too.
    let lines = on(&nats, &["run", "watch", "long", "--json"]).output().unwrap();
    assert_eq!(lines.status.code(), Some(1), "{}", text(&lines));
    let events: Vec<Value> = String::from_utf8(lines.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let count = |kind: &str| events.iter().filter(|event| event["event"] == kind).count();
    assert!(count("round_closed") >= 2 && count("update_accepted") >= 8, "{events:?}");
    assert_eq!(events.last().unwrap()["status"]["state"], "cancelled", "{events:?}");

    // In a pipe there is a line for every round.
    let piped = on(&nats, &["run", "watch", "long"]).output().unwrap();
    let table = String::from_utf8(piped.stdout).unwrap();
    assert!(table.contains("accuracy") && table.contains("4/4") && !table.contains('\u{1b}'), "{table}");
}
