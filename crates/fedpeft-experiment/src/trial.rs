//! Trials: the runs that a grid asks for.

use std::{collections::BTreeMap, fmt};

use fedpeft_protocol::Digest;
use toml::{Table, Value};

use crate::{ExperimentError, grid::Grid, merge::merge};

/// One run of the grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Its name in the folder.
    pub id: TrialId,
    /// Its value on every axis, in the order of the axes.
    pub point: Vec<String>,
    /// Its seed.
    pub seed: u64,
    /// Its `run.toml`.
    pub run: Table,
    /// How much longer its training steps take than those of a trial of cost 1.
    pub cost: f64,
    /// `method=bias alpha=0.1 seed=1`
    pub label: String,
}

/// The name of a trial: the first 12 digits of the SHA-256 of its `run.toml`, without what cannot change a result.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct TrialId(String);

impl fmt::Display for TrialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TrialId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of(run: &Table) -> Self {
        let mut run = run.clone();
        // How a run is spread over processes changes no byte of it.
        if let Some(Value::Table(simulate)) = run.get_mut("simulate") {
            ["workers", "threads", "exporter"].iter().for_each(|key| drop(simulate.remove(*key)));
            if simulate.is_empty() {
                run.remove("simulate");
            }
        }
        Self(Digest::of(canonical(&Value::Table(run)).to_string()).short())
    }
}

/// A value as JSON whose keys are sorted.
fn canonical(value: &Value) -> serde_json::Value {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        // JSON has no infinite numbers, TOML does.
        Value::Float(number) if !number.is_finite() => number.to_string().into(),
        Value::Float(number) => (*number).into(),
        Value::Boolean(truth) => (*truth).into(),
        Value::Datetime(moment) => moment.to_string().into(),
        Value::Array(values) => values.iter().map(canonical).collect(),
        Value::Table(table) => {
            let sorted: BTreeMap<&String, &Value> = table.iter().collect();
            sorted.into_iter().map(|(key, value)| (key.clone(), canonical(value))).collect()
        }
    }
}

impl Grid {
    /// Every point with every seed: the first axis changes slowest, the seed fastest.
    pub fn trials(&self) -> Result<Vec<Trial>, ExperimentError> {
        let mut trials = Vec::new();
        let mut known: BTreeMap<TrialId, String> = BTreeMap::new();
        for point in self.points() {
            for &seed in &self.seeds {
                let trial = self.trial(&point, seed)?;
                if let Some(twin) = known.insert(trial.id.clone(), trial.label.clone()) {
                    return Err(self.error(&format!(
                        "{twin} and {} are the same run: let their values set something, or exclude one",
                        trial.label
                    )));
                }
                trials.push(trial);
            }
        }
        if trials.is_empty() {
            return Err(self.error("everything is excluded: leave a point"));
        }
        Ok(trials)
    }

    /// Every combination of values that is not excluded.
    pub fn points(&self) -> Vec<Vec<String>> {
        let mut points = vec![Vec::new()];
        for axis in &self.axes {
            let with = |point: &Vec<String>| {
                let point = point.clone();
                axis.values.iter().map(move |value| [point.clone(), vec![value.name.clone()]].concat())
            };
            points = points.iter().flat_map(with).collect();
        }
        points.retain(|point| !self.exclude.iter().any(|excluded| excluded.holds(&self.axes, point)));
        points
    }

    fn trial(&self, point: &[String], seed: u64) -> Result<Trial, ExperimentError> {
        let mut run = self.base.clone();
        let mut cost = 1.0;
        for (axis, name) in self.axes.iter().zip(point) {
            for value in axis.values.iter().filter(|value| value.name == *name) {
                merge(&mut run, &value.set);
                cost *= value.cost;
            }
        }
        for own in self.overrides.iter().filter(|own| own.when.holds(&self.axes, point)) {
            merge(&mut run, &own.set);
        }
        let number = i64::try_from(seed).map_err(|_| self.error(&format!("the seed {seed} is too large")))?;
        // The partition, cohorts and shuffling, as `--seed` does.
        for section in ["run", "data"] {
            let table = run.entry(section).or_insert_with(|| Table::new().into());
            let Value::Table(table) = table else {
                return Err(self.error(&format!("base.{section} must be a table, [base.{section}]")));
            };
            table.insert("seed".to_owned(), number.into());
        }
        let values = self.axes.iter().zip(point).map(|(axis, value)| format!("{}={value} ", axis.name));
        let label = format!("{}seed={seed}", values.collect::<String>());
        Ok(Trial { id: TrialId::of(&run), point: point.to_vec(), seed, run, cost, label })
    }
}
