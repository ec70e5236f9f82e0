use std::{fs, path::Path};

use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::{Grid, outcome::tests::report};

/// Runs a shell script in place of a simulation; `$1` is the report to write, `$2` the store.
struct Script(&'static str);

impl Launch for Script {
    fn command(&self, trial: &Trial, place: &Place) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", self.0, "sh"]).arg(place.report()).arg(place.store()).arg(trial.seed.to_string());
        command.env("REPORT", report(&[0.5, 0.6]));
        command
    }

    fn round(&self, line: &str) -> Option<u32> {
        line.strip_prefix("round ")?.parse().ok()
    }
}

fn trials() -> Vec<Trial> {
    Grid::parse("g", "title = 't'\nseeds = [1, 2, 3]\nbase = {}").unwrap().trials().unwrap()
}

fn open(home: &TempDir) -> Folder {
    Folder::open(home.path()).unwrap()
}

async fn to_the_end(folder: &Folder, jobs: usize, script: &'static str) -> Vec<String> {
    let mut seen = Vec::new();
    let note = |event: Event<'_>| match event {
        Event::Begun(trial) => seen.push(format!("{} begun", trial.seed)),
        Event::Round(trial, round) => seen.push(format!("{} round {round}", trial.seed)),
        Event::Ended(trial, Status::Failed(why)) => seen.push(format!("{} failed: {why}", trial.seed)),
        Event::Ended(trial, status) => seen.push(format!("{} {}", trial.seed, status.word())),
    };
    run(folder, &trials(), jobs, &Script(script), std::future::pending(), note).await.unwrap();
    seen
}

#[tokio::test]
async fn one_after_the_other_and_a_failure_stops_no_other() {
    let home = tempfile::tempdir().unwrap();
    let folder = open(&home);
    let fails_second =
        "[ $3 = 2 ] && { echo 'error: no quorum' >&2; exit 1; }; echo 'round 1'; echo \"$REPORT\" > $1";
    let seen = to_the_end(&folder, 1, fails_second).await;
    let expected = [
        "1 begun",
        "1 round 1",
        "1 finished",
        "2 begun",
        "2 failed: no quorum (exit status: 1)",
        "3 begun",
        "3 round 1",
        "3 finished",
    ];
    assert_eq!(seen, expected);
    // What failed is tried again.
    let words =
        |folder: &Folder| trials().iter().map(|own| folder.status(own).unwrap().word()).collect::<Vec<_>>();
    assert_eq!(words(&folder), ["finished", "failed", "finished"]);
    let again = &trials()[1..2];
    run(&folder, again, 1, &Script("echo \"$REPORT\" > $1"), std::future::pending(), |_| {}).await.unwrap();
    assert_eq!(words(&folder), ["finished"; 3]);
    assert_eq!(fs::read_dir(home.path().join("work")).unwrap().count(), 0);
}

#[tokio::test]
async fn as_many_as_are_allowed_run_at_once() {
    let home = tempfile::tempdir().unwrap();
    let folder = open(&home);
    // Each waits until two are there: with one at a time the first would wait for ever.
    let meets = "d=$(dirname $(dirname $(dirname $2))); touch $d/met.$3; \
        while [ $(ls $d/met.* | wc -l) -lt 2 ]; do sleep 0.02; done; echo \"$REPORT\" > $1";
    let seen = to_the_end(&folder, 2, meets).await;
    assert_eq!(seen.iter().filter(|line| line.ends_with("finished")).count(), 3, "{seen:?}");
}

#[tokio::test]
async fn an_interrupted_trial_goes_on_where_it_was() {
    let home = tempfile::tempdir().unwrap();
    let folder = open(&home);
    let works = "trap 'exit 130' TERM; mkdir -p $2; echo x >> $2/rounds; echo 'round 1'; while :; do sleep 0.02; done";
    let (first_round, mut ended) = (Notify::new(), Vec::new());
    let stop = first_round.notified();
    run(&folder, &trials(), 1, &Script(works), stop, |event| match event {
        Event::Round(..) => first_round.notify_one(),
        Event::Ended(trial, status) => ended.push((trial.seed, status.clone())),
        Event::Begun(_) => {}
    })
    .await
    .unwrap();
    assert_eq!(ended, [(1, Status::Begun)], "the others must not begin");
    drop(folder);
    let folder = open(&home);
    let goes_on = "[ -f $2/rounds ] || [ $3 != 1 ] || exit 3; echo \"$REPORT\" > $1";
    let seen = to_the_end(&folder, 1, goes_on).await;
    assert!(seen.contains(&"1 finished".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn a_report_that_came_after_the_experiment_was_killed_is_taken_in() {
    let home = tempfile::tempdir().unwrap();
    let folder = open(&home);
    let trial = &trials()[0];
    let place = folder.place(&trial.id);
    place.begin(trial).unwrap();
    fs::write(place.report(), report(&[0.5])).unwrap();
    let seen = to_the_end(&folder, 1, "exit 3").await;
    assert_eq!(seen[0], "1 finished");
    assert!(seen[2].starts_with("2 failed: it said nothing"), "{seen:?}");
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_its_trials() {
    struct Nothing;
    impl Launch for Nothing {
        fn command(&self, _: &Trial, _: &Place) -> Command {
            Command::new(Path::new("/nowhere/fedpeft"))
        }
        fn round(&self, _: &str) -> Option<u32> {
            None
        }
    }
    let home = tempfile::tempdir().unwrap();
    let folder = open(&home);
    run(&folder, &trials()[..1], 1, &Nothing, std::future::pending(), |_| {}).await.unwrap();
    let Status::Failed(reason) = folder.status(&trials()[0]).unwrap() else { panic!("it did not fail") };
    assert!(reason.starts_with("/nowhere/fedpeft cannot be run"), "{reason}");
}
