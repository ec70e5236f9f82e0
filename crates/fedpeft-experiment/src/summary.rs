//! What the finished trials of a grid say together.

use serde::Serialize;

use crate::{
    ExperimentError,
    folder::{Folder, Status},
    grid::Grid,
    machine::Machine,
    outcome::Outcome,
    spread::Spread,
    trial::{Trial, TrialId},
};

const MIB: f64 = (1u64 << 20) as f64;
const KIB: f64 = 1024.0;

/// A grid and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// What is asked.
    pub title: String,
    /// What the reader should know.
    pub about: String,
    /// The command that makes it.
    pub command: String,
    /// What ran the trials.
    pub machine: Machine,
    /// Versions of what took part in the first finished trial.
    pub versions: std::collections::BTreeMap<String, String>,
    /// Names of the axes.
    pub axes: Vec<String>,
    /// Accuracies for which [`Group::mib_to`] says what they cost.
    pub targets: Vec<f64>,
    /// The points, in the order of the grid.
    pub groups: Vec<Group>,
    /// The trials, in the order of the grid.
    pub trials: Vec<Row>,
    /// The reports of the finished ones, likewise.
    #[serde(skip)]
    pub outcomes: Vec<(Trial, Outcome)>,
}

/// One trial and where it stands.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name in the folder.
    pub id: TrialId,
    /// Its values and seed.
    pub label: String,
    /// Where it stands.
    pub status: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One point of the grid, over its seeds.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// Its value on every axis.
    pub point: Vec<String>,
    /// Finished trials.
    pub finished: usize,
    /// Trials asked for.
    pub asked: usize,
    /// Held-out accuracy of the last adapter.
    pub accuracy: Option<Spread>,
    /// Values in the adapter.
    pub trained_values: Option<u64>,
    /// KiB from a client with its update, in the mean over all rounds and clients.
    pub kib_up: Option<f64>,
    /// KiB to a client for each of its updates, without what it fetches once.
    pub kib_down: Option<f64>,
    /// MiB up and down of all rounds, likewise.
    pub mib: Option<Spread>,
    /// MiB of backbone and artifacts, which workers fetched before they trained.
    pub mib_once: Option<f64>,
    /// For each target, MiB until it was reached first, over the seeds that reached it.
    pub mib_to: Vec<Option<Spread>>,
    /// Privacy spent by the end.
    pub epsilon: Option<Spread>,
    /// Seconds of all rounds.
    pub seconds: Option<Spread>,
    /// Accuracy and bytes by round.
    pub rounds: Vec<RoundSpread>,
}

/// One round, over the seeds.
#[derive(Debug, Clone, Serialize)]
pub struct RoundSpread {
    /// Its number.
    pub round: u32,
    /// Held-out accuracy.
    pub accuracy: Option<Spread>,
    /// MiB up and down until its end, without what is fetched once.
    pub mib: f64,
}

impl Summary {
    /// Reads what is finished of `trials`, which are those of `grid`.
    pub fn read(
        grid: &Grid,
        trials: &[Trial],
        folder: &Folder,
        command: String,
    ) -> Result<Self, ExperimentError> {
        let mut rows = Vec::new();
        let mut outcomes = Vec::new();
        for trial in trials {
            let status = folder.status(trial)?;
            let word = status.word();
            let mut reason = None;
            match status {
                Status::Finished(outcome) => outcomes.push((trial.clone(), *outcome)),
                Status::Failed(why) => reason = Some(why),
                Status::Begun | Status::Missing => {}
            }
            rows.push(Row { id: trial.id.clone(), label: trial.label.clone(), status: word, reason });
        }
        let targets = grid.report.targets.clone();
        let group = |point: Vec<String>| {
            let asked = trials.iter().filter(|trial| trial.point == point).count();
            let own = outcomes.iter().filter(|(trial, _)| trial.point == point);
            Group::of(asked, &own.map(|(_, outcome)| outcome).collect::<Vec<_>>(), &targets, point)
        };
        Ok(Self {
            title: grid.title.clone(),
            about: grid.about.clone(),
            command,
            machine: folder.machine(),
            versions: outcomes.first().map(|(_, outcome)| outcome.versions.clone()).unwrap_or_default(),
            axes: grid.axes.iter().map(|axis| axis.name.clone()).collect(),
            groups: grid.points().into_iter().map(group).collect(),
            targets,
            trials: rows,
            outcomes,
        })
    }

    /// Trials with this status.
    pub fn count(&self, status: &str) -> usize {
        self.trials.iter().filter(|row| row.status == status).count()
    }
}

impl Group {
    fn of(asked: usize, outcomes: &[&Outcome], targets: &[f64], point: Vec<String>) -> Self {
        let over = |value: &dyn Fn(&Outcome) -> Option<f64>| {
            Spread::of(outcomes.iter().filter_map(|outcome| value(outcome)))
        };
        let total = |outcome: &Outcome| outcome.cumulative().last().map(|(_, bytes)| bytes as f64 / MIB);
        let rounds = || outcomes.iter().flat_map(|outcome| &outcome.rounds);
        let updates: usize = rounds().map(|round| round.accepted).sum();
        let per_update = |bytes: u64| (updates > 0).then(|| bytes as f64 / KIB / updates as f64);
        let once =
            |outcome: &Outcome| Some(outcome.rounds.iter().map(|round| round.once).sum::<u64>() as f64 / MIB);
        Self {
            finished: outcomes.len(),
            asked,
            accuracy: over(&Outcome::final_accuracy),
            trained_values: outcomes.first().and_then(|outcome| outcome.adapter_bytes).map(|bytes| bytes / 4),
            kib_up: per_update(rounds().map(|round| round.up).sum()),
            kib_down: per_update(rounds().map(|round| round.down).sum()),
            mib: over(&total),
            mib_once: over(&once).map(|once| once.mean),
            mib_to: targets
                .iter()
                .map(|target| over(&|outcome| outcome.bytes_to(*target).map(|bytes| bytes as f64 / MIB)))
                .collect(),
            epsilon: over(&Outcome::epsilon),
            seconds: over(&|outcome| Some(outcome.seconds)),
            rounds: by_round(outcomes),
            point,
        }
    }

    /// What is written into a cell for MiB until a target; how many seeds reached it where not all did.
    pub fn show_mib_to(&self, target: usize) -> String {
        match self.mib_to.get(target) {
            Some(Some(spread)) if spread.n < self.finished => {
                format!("{} ({} of {})", spread.short(), spread.n, self.finished)
            }
            Some(Some(spread)) => spread.short(),
            _ if self.finished == 0 => String::new(),
            _ => "not reached".to_owned(),
        }
    }
}

/// The rounds that all trials have.
fn by_round(outcomes: &[&Outcome]) -> Vec<RoundSpread> {
    let curves: Vec<Vec<_>> = outcomes.iter().map(|outcome| outcome.cumulative().collect()).collect();
    let common = curves.iter().map(Vec::len).min().unwrap_or(0);
    let at = |index: usize| {
        let points = || curves.iter().filter_map(move |curve| curve.get(index));
        let bytes = Spread::of(points().map(|(_, bytes)| *bytes as f64 / MIB))?;
        Some(RoundSpread {
            round: points().next()?.0.round,
            accuracy: Spread::of(points().filter_map(|(round, _)| round.accuracy)),
            mib: bytes.mean,
        })
    };
    (0..common).filter_map(at).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::outcome::tests::report;

    pub const GRID: &str = r#"
        title = "Bias <against> full"
        about = "First.\n\nSecond."
        seeds = [1, 2]
        base.run.rounds = 3
        [[axis]]
        name = "method"
        values = [{ name = "bias", set.model.method = "bias" }, { name = "full", set.model.method = "full" }]
        [[axis]]
        name = "alpha"
        values = [{ name = "0.1", set.data.alpha = 0.1 }, { name = "iid", set.data.alpha = 9 }]
        [report]
        targets = [0.5, 0.9]
    "#;

    /// Three points finished for both seeds, one trial failed, one missing.
    pub fn summary() -> Summary {
        let home = tempfile::tempdir().unwrap();
        let grid = Grid::parse("g.toml", GRID).unwrap();
        let trials = grid.trials().unwrap();
        let folder = Folder::open(home.path()).unwrap();
        for (index, trial) in trials.iter().enumerate() {
            let place = folder.place(&trial.id);
            match index {
                6 => drop(place.settle(Err("no quorum".into())).unwrap_err()),
                7 => {}
                _ => {
                    place.begin(trial).unwrap();
                    let accuracy = 0.4 + 0.05 * index as f64;
                    fs::write(place.report(), report(&[0.3, accuracy - 0.1, accuracy])).unwrap();
                    place.settle(Ok(())).unwrap();
                }
            }
        }
        let failed = folder.place(&trials[6].id);
        failed.begin(&trials[6]).unwrap();
        failed.settle(Err("no quorum".into())).unwrap();
        let summary = Summary::read(&grid, &trials, &folder, "fedpeft experiment g.toml".into()).unwrap();
        let machine = Machine { cores: 2, processor: None, system: "linux x86_64".into() };
        Summary { machine, ..summary }
    }

    #[test]
    fn points_are_summed_up_over_seeds() {
        let summary = summary();
        assert_eq!((summary.count("finished"), summary.count("failed"), summary.count("missing")), (6, 1, 1));
        let [first, second, _, last] = &summary.groups[..] else { panic!("not four points") };
        let accuracy = first.accuracy.unwrap();
        assert!((accuracy.mean - 0.425).abs() < 1e-12 && (accuracy.sd.unwrap() - 0.035355).abs() < 1e-6);
        // Two rounds of 1 MiB each way are needed for neither seed, three for that which ends at 0.55.
        assert_eq!(second.mib_to[0].map(|spread| (spread.mean, spread.n)), Some((6.0, 2)));
        assert_eq!(
            (first.show_mib_to(0).as_str(), first.show_mib_to(1).as_str()),
            ("not reached", "not reached")
        );
        assert_eq!((first.kib_up, first.kib_down, first.mib_once), (Some(1024.0), Some(1024.0), Some(5.0)));
        assert_eq!(first.rounds.iter().map(|round| round.mib).collect::<Vec<_>>(), [2.0, 4.0, 6.0]);
        assert_eq!((last.finished, last.asked, last.accuracy), (0, 2, None));
        assert_eq!(summary.trials[6].reason.as_deref(), Some("no quorum"));
    }
}
