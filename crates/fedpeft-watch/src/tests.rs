use fedpeft_protocol::{
    Digest,
    event::Event,
    run::{RunRecord, RunStatus},
};
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};
use serde_json::{Value, json};

use crate::{State, draw, state::Phase, svg};

fn record(privacy: bool) -> RunRecord {
    let digest = Digest::of("adapter");
    let mut spec =
        json!({"model": {"name": "vit"}, "rounds": 4, "cohort": 3, "round_deadline_seconds": 300.0});
    if privacy {
        spec["privacy"] = json!({"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0});
    }
    serde_json::from_value(json!({
        "version": 1, "run": "trial-7", "spec": spec, "manifest": digest, "status": {"state": "pending"}, "round": 0,
        "adapter": digest, "open": null, "epoch": 1, "created_ms": 0, "updated_ms": 0,
    }))
    .unwrap()
}

fn event(at_s: u64, kind: Value) -> Event {
    let mut event = json!({"version": 1, "run": "trial-7", "at_ms": at_s * 1000, "epoch": 1});
    event.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
    serde_json::from_value(event).unwrap()
}

fn opened(at: u64, round: u32) -> Event {
    event(at, json!({"event": "round_opened", "round": round, "cohort": ["a", "b", "c"]}))
}

fn accepted(at: u64, round: u32, client: &str) -> Event {
    let kind = json!({
        "event": "update_accepted", "round": round, "client": client, "examples": 24, "loss": 0.5, "seconds": 2.0,
        "size": 221_000,
    });
    event(at, kind)
}

fn refused(at: u64, round: u32, client: &str) -> Event {
    let reason = "it is \u{1b}[31mNaN";
    event(at, json!({"event": "update_rejected", "round": round, "client": client, "reason": reason}))
}

fn closed(at: u64, round: u32, accuracy: Option<f64>) -> Event {
    let digest = Digest::of("adapter");
    let client = |name: &str, outcome: Value| {
        let mut client = json!({
            "client": name, "examples": 24, "bytes_up": 221_000, "bytes_down": 222_000, "loss": 0.5,
            "train_seconds": 2.0,
        });
        client.as_object_mut().unwrap().extend(outcome.as_object().unwrap().clone());
        client
    };
    let ok = json!({"outcome": "accepted", "digest": digest});
    let clients = [
        client("a", ok.clone()),
        client("b", ok),
        client("c", json!({"outcome": "rejected", "reason": "NaN"})),
    ];
    let report = json!({
        "round": round, "loss": 1.5, "accuracy": accuracy, "train_loss": 0.5, "bytes_up": 663_000,
        "bytes_down": 666_000, "bytes_by_kind": {}, "clients": clients,
        "privacy": {"noise_multiplier": 1.0, "clip_norm": 0.5, "epsilon": 7.5},
        "seconds": {"select": 0, "broadcast": 0, "train": 2, "collect": 0, "aggregate": 0, "evaluate": 1, "total": 3.5},
        "adapter": digest,
    });
    event(at, json!({"event": "round_closed", "report": report}))
}

fn status(at: u64, status: Value) -> Event {
    let kind = json!({
        "event": "status", "status": status, "method": "bias", "rounds": 4, "adapter_values": 55_306,
        "backbone_values": 22_056_192,
    });
    event(at, kind)
}

/// Two rounds are done, the third is open: one has answered, one was refused.
fn busy() -> State {
    let mut state = State::new(&record(true));
    for event in [
        status(10, json!({"state": "running"})),
        opened(11, 1),
        accepted(13, 1, "a"),
        accepted(13, 1, "b"),
        refused(14, 1, "c"),
        closed(15, 1, Some(0.25)),
        opened(16, 2),
        closed(19, 2, Some(0.5)),
        opened(20, 3),
        accepted(22, 3, "b"),
        refused(23, 3, "c"),
    ] {
        state.event(&event);
    }
    state
}

fn screen(state: &State, (width, height): (u16, u16), now_s: u64) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, now_s * 1000)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let rows = buffer.content.chunks(width);
    let lines =
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_busy_run_looks_like_this() {
    let shown = text(&screen(&busy(), (100, 26), 25));
    let expected = include_str!("tests/busy.txt");
    assert_eq!(shown.trim_end(), expected.trim_end(), "it looks like this now:\n{shown}");
}

#[test]
fn phases_follow_one_another() {
    let mut state = State::new(&record(false));
    assert_eq!(state.phase(), Phase::Pending);
    state.event(&event(1, json!({"event": "waiting", "present": 1, "needed": 3})));
    assert_eq!(state.phase(), Phase::Waiting { present: 1, needed: 3 });
    state.event(&opened(2, 1));
    state.event(&accepted(3, 1, "a"));
    assert_eq!((state.phase(), state.deadline_ms()), (Phase::Training, Some(302_000)));
    assert!(text(&screen(&state, (100, 26), 3)).contains("1 of 3 have answered, at most 4:59 left"));
    assert!(text(&screen(&state, (100, 26), 400)).contains("its deadline is over"));
    state.event(&accepted(3, 1, "b"));
    state.event(&refused(3, 1, "c"));
    assert_eq!(state.phase(), Phase::Closing);
    state.event(&closed(4, 1, None));
    assert_eq!(state.phase(), Phase::Between);
    state.event(&status(5, json!({"state": "failed", "reason": "no quorum"})));
    assert_eq!(state.phase(), Phase::Ended);
    assert!(text(&screen(&state, (100, 26), 6)).contains("failed: no quorum"));
}

#[test]
fn what_is_told_twice_or_late_changes_nothing() {
    let (mut state, before) = (busy(), text(&screen(&busy(), (100, 15), 25)));
    let cells =
        |state: &State| text(&screen(state, (100, 15), 25)).lines().take(9).collect::<Vec<_>>().join("\n");
    let head = before.lines().take(9).collect::<Vec<_>>().join("\n");
    for event in
        [opened(11, 1), opened(20, 3), accepted(22, 3, "b"), refused(24, 3, "b"), closed(19, 2, None)]
    {
        state.event(&event);
        assert_eq!(cells(&state), head, "after {event:?}");
    }
}

#[test]
fn a_record_tells_of_a_round_whose_event_was_lost() {
    let mut open = record(false);
    open.status = RunStatus::Running;
    let cohort = json!(["a", "b"]);
    open.open = serde_json::from_value(json!({"round": 3, "cohort": cohort, "opened_ms": 5000})).unwrap();
    let state = State::new(&open);
    assert_eq!((state.phase(), state.deadline_ms()), (Phase::Training, Some(305_000)));
}

#[test]
fn every_size_is_drawn() {
    let (busy, fresh) = (busy(), State::new(&record(false)));
    for width in [1, 2, 10, 40, 71, 72, 200] {
        for height in [1, 2, 5, 9, 17, 18, 60] {
            for state in [&busy, &fresh] {
                screen(state, (width, height), 25);
            }
        }
    }
    let low = text(&screen(&busy, (60, 12), 25));
    assert!(low.contains("round 3 trains") && !low.contains("accuracy 0.5000"), "{low}");
}

#[test]
fn pictures_hold_what_is_on_the_screen() {
    let picture = svg(&screen(&busy(), (100, 26), 25));
    for text in ["accuracy 0.5000", "1 accepted", "update of c refused", "647.5 KiB 650.4 KiB<"] {
        assert!(picture.contains(text), "no {text}");
    }
    assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());
    assert!(!picture.contains('\u{1b}'));
}
