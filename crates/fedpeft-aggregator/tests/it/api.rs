//! The control API.

use fedpeft_bus::BusError;
use fedpeft_protocol::{
    ModelName,
    api::{CreateRun, Empty, RunList},
    run::{RunRecord, RunSpec, RunStatus},
};

use crate::federation::{Federation, spec};

fn refusal<T: std::fmt::Debug>(result: Result<T, BusError>) -> (u16, String) {
    match result {
        Err(BusError::Api(error)) => (error.code, error.message),
        other => panic!("{other:?} is no refusal"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_refused_in_one_line() {
    let federation = Federation::start(10).await;
    assert!(matches!(federation.create("r", spec(1, 1)).await, Err(BusError::NoService { .. })));
    let _service = federation.aggregator().await;
    let change = |change: &dyn Fn(&mut RunSpec)| {
        let mut spec = spec(1, 1);
        change(&mut spec);
        spec
    };
    for (wanted, code, expected) in [
        (change(&|s| s.rounds = 0), 400, "rounds must be at least 1"),
        (change(&|s| s.cohort = 10_001), 400, "at most 10000"),
        (change(&|s| s.quorum = Some(2)), 400, "quorum is 2"),
        (change(&|s| s.round_deadline_seconds = f64::MAX), 400, "round_deadline_seconds"),
        (change(&|s| s.model.name = ModelName::new("absent").unwrap()), 404, "model absent is not published"),
        (change(&|s| s.model.version = Some(9)), 404, "tiny version 9"),
    ] {
        let (found, message) = refusal(federation.create("r", wanted).await);
        assert_eq!(found, code, "{message}");
        assert!(message.contains(expected) && message.lines().count() == 1, "{message}");
    }
    for endpoint in ["runs.get", "runs.cancel", "runs.resume"] {
        let (code, message) = refusal(federation.ask::<RunRecord>(endpoint, "nothing").await);
        assert_eq!((code, message.as_str()), (404, "there is no run nothing"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_created_listed_and_ended_once() {
    let federation = Federation::start(10).await;
    let _service = federation.aggregator().await;
    let first = federation.create("first", spec(1, 1)).await.unwrap();
    assert_eq!((first.status, first.round), (RunStatus::Pending, 0));
    assert_eq!(federation.adapter(&first.adapter).await, federation.initial());
    let (code, message) = refusal(federation.create("first", spec(1, 1)).await);
    assert_eq!((code, message.as_str()), (409, "run first exists: choose another name"));

    let request = CreateRun { run: None, spec: spec(1, 1) };
    let second: RunRecord = federation.bus.request("runs.create", &request).await.unwrap();
    assert!(second.run.as_str().starts_with("run-"));
    let list: RunList = federation.bus.request("runs.list", &Empty {}).await.unwrap();
    assert_eq!(list.runs.len(), 2);
    assert!(list.runs[0].created_ms >= list.runs[1].created_ms);

    let (code, message) = refusal(federation.ask::<RunRecord>("runs.resume", "first").await);
    assert_eq!((code, message.as_str()), (409, "run first is pending: there is nothing to resume"));
    federation.ask::<RunRecord>("runs.cancel", "first").await.unwrap();
    let (code, message) = refusal(federation.ask::<RunRecord>("runs.cancel", "first").await);
    assert_eq!((code, message.as_str()), (409, "run first is cancelled: only active runs can be cancelled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_artifacts_are_gone_fails_with_the_reason() {
    let federation = Federation::start(10).await;
    let service = federation.aggregator().await;
    let record = federation.create("r", spec(1, 1)).await.unwrap();
    service.stop().await;
    federation.bus.delete_blob(&record.manifest).await.unwrap();
    let _service = federation.aggregator().await;
    let view = federation.ended("r").await;
    let RunStatus::Failed { reason } = view.record.status else { panic!("{:?}", view.record.status) };
    assert!(reason.contains("not in the blob store"), "{reason}");
}
