//! One trial: the runs without faults, the same runs with faults, and the comparison.

use std::{path::PathBuf, sync::Arc, time::Duration};

use fedpeft_protocol::{
    Round,
    run::{RunStatus, RunView},
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    inject::inject,
    progress::{Moment, Progress, State, Step},
    report::{Report, Struck, in_seconds},
    schedule::{Kind, Planned, draw},
    verdict::compare,
    world::{PATIENCE, RUNS, World},
};

/// What is to be done.
pub struct Plan {
    pub seed: u64,
    /// Faults in the order in which they strike.
    pub kinds: Vec<Kind>,
    /// Rounds of each of the runs.
    pub rounds: Round,
    /// Local epochs of a client in each of them.
    pub epochs: u32,
    /// File for the report.
    pub json: Option<PathBuf>,
}

/// Carries it out; panics where anything is not as without faults.
pub async fn trial(plan: Plan) {
    let calm_begun = Instant::now();
    let calm = Box::pin(undisturbed(&plan)).await;
    let calm_seconds = in_seconds(calm_begun.elapsed());
    let mut rounds: Vec<f64> =
        calm.iter().flat_map(|view| &view.rounds).map(|report| report.seconds.total).collect();
    rounds.sort_by(f64::total_cmp);

    let begun = Instant::now();
    let world = Arc::new(World::start().await);
    let (mut faults, mut verdicts) = (Vec::new(), Vec::new());
    let halves = plan.kinds.split_at(plan.kinds.len() / RUNS.len());
    for ((method, kinds), calm) in RUNS.into_iter().zip([halves.0, halves.1]).zip(&calm) {
        let schedule = draw(plan.seed, kinds);
        let run = world.create(method, plan.rounds, plan.epochs).await;
        let progress = Arc::new(Progress::follow(&world.bus, &run).await);
        for struck in Box::pin(disturb(&world, &progress, &schedule, run.as_str())).await {
            faults.push(struck);
        }
        match progress.ended(PATIENCE).await {
            Some(RunStatus::Completed) => {}
            ended => stuck(&world, &progress, &format!("run {run} ended as {ended:?}")),
        }
        assert!(world.ready(PATIENCE).await, "not ready after run {run}:\n{}", world.diagnosis());
        let mut verdict = compare(calm, &world.view(&run).await);
        verdict.verified = world.verify(&run).await.map_err(|error| verdict.problems.push(error)).ok();
        if !world.exported(&run, plan.rounds).await {
            verdict.problems.push("the exporter has not counted every round".into());
        }
        verdicts.push(verdict);
    }
    let report = Report {
        seed: plan.seed,
        faults,
        verdicts,
        starts: world.starts(),
        calm_seconds,
        disturbed_seconds: in_seconds(begun.elapsed()),
        calm_round_seconds: in_seconds(Duration::from_secs_f64(rounds[rounds.len() / 2])),
    };
    println!("\n{}\n", report.table());
    println!(
        "seed {}: {} faults; {:.0} s, without faults {:.0} s (a round: {:.1} s); starts: {:?}",
        report.seed,
        report.faults.len(),
        report.disturbed_seconds,
        report.calm_seconds,
        report.calm_round_seconds,
        report.starts
    );
    for verdict in &report.verdicts {
        let verified = verdict.verified.as_ref().unwrap_or(&serde_json::Value::Null);
        println!("run {}: final adapter {}, verified: {verified}", verdict.run, verdict.adapter);
    }
    if let Some(path) = &plan.json {
        report.write(path);
    }
    let problems = report.problems();
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n"), world.diagnosis());
    assert!(
        report.faults.len() * 4 >= plan.kinds.len() * 3,
        "only {} of {} faults struck before the runs were over: give them more rounds",
        report.faults.len(),
        plan.kinds.len()
    );
}

/// The runs without faults, in a federation of their own.
async fn undisturbed(plan: &Plan) -> Vec<RunView> {
    let world = World::start().await;
    let mut views = Vec::new();
    for method in RUNS {
        let run = world.create(method, plan.rounds, plan.epochs).await;
        let progress = Progress::follow(&world.bus, &run).await;
        let ended = progress.ended(PATIENCE).await;
        assert_eq!(ended, Some(RunStatus::Completed), "{}", world.diagnosis());
        views.push(world.view(&run).await);
    }
    views
}

/// Strikes with every fault of a schedule, each at its moment.
async fn disturb(
    world: &Arc<World>,
    progress: &Arc<Progress>,
    schedule: &[Planned],
    run: &str,
) -> Vec<Struck> {
    let (started, mut struck, mut recovering) = (Instant::now(), Vec::new(), JoinSet::new());
    println!("run {run}:");
    for planned in schedule {
        if !planned.overlaps {
            struck.extend(recovering.join_all().await);
            recovering = JoinSet::new();
        }
        let at = progress.state().moment.next(planned.at);
        match progress.reached(at, PATIENCE).await {
            Some(state) if state.ended.is_none() => {}
            // A fault that holds nobody up is overcome while rounds go on, on a fast machine all that are left.
            Some(State { ended: Some(RunStatus::Completed), .. }) => {
                println!("{planned:?} comes too late");
                break;
            }
            state => stuck(world, progress, &format!("{planned:?} cannot strike any more: {state:?}")),
        }
        tokio::time::sleep(planned.after).await;
        let (moment, begun) = (progress.state().moment, Instant::now());
        let detail = inject(world, planned.fault).await;
        let lasted_seconds = in_seconds(begun.elapsed());
        println!(
            "{:>6.1} s, round {} {:?}: {}, {detail}",
            started.elapsed().as_secs_f64(),
            moment.round,
            moment.step,
            planned.kind.name()
        );
        let round = if moment.step == Step::Closed { moment.round + 1 } else { moment.round.max(1) };
        let fault = Struck {
            kind: planned.kind,
            fault: planned.kind.name(),
            detail,
            run: run.to_owned(),
            round,
            step: format!("{:?}", moment.step),
            lasted_seconds,
            recovery_seconds: 0.0,
        };
        recovering.spawn(recovered(world.clone(), progress.clone(), fault, begun));
    }
    struck.extend(recovering.join_all().await);
    struck
}

/// Waits until a fault is overcome: every process is ready and, where the fault may hold the run up, the round
/// that it hit is closed.
async fn recovered(world: Arc<World>, progress: Arc<Progress>, fault: Struck, begun: Instant) -> Struck {
    let closed = Moment { round: fault.round, step: Step::Closed };
    let what = format!("{} ({}) is not overcome", fault.fault, fault.detail);
    if !matches!(fault.kind, Kind::KillRegistry | Kind::KillExporter)
        && progress.reached(closed, PATIENCE).await.is_none()
    {
        stuck(&world, &progress, &what);
    }
    if !world.ready(PATIENCE).await {
        stuck(&world, &progress, &what);
    }
    Struck { recovery_seconds: in_seconds(begun.elapsed()), ..fault }
}

fn stuck(world: &World, progress: &Progress, what: &str) -> ! {
    let state = progress.state();
    let idle = state.since.elapsed().as_secs_f64();
    panic!("{what}; {state:?}, without progress for {idle:.0} s\n{}", world.diagnosis())
}
