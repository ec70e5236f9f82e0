//! The grid file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde::Deserialize;
use toml::Table;

use crate::{ExperimentError, estimate::Costs, figures::ReportSpec};

/// A run, what varies it, and how often each variation is repeated.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// One line: what is asked.
    pub title: String,
    /// What the reader of the report should know; paragraphs, separated by empty lines.
    #[serde(default)]
    pub about: String,
    /// Every point of the grid is run once with each.
    pub seeds: Vec<u64>,
    /// A `run.toml`.
    pub base: Table,
    /// What varies, in the order of tables.
    #[serde(default, rename = "axis")]
    pub axes: Vec<Axis>,
    /// What some points have besides what their values say.
    #[serde(default, rename = "override")]
    pub overrides: Vec<Override>,
    /// Points that are left out.
    #[serde(default)]
    pub exclude: Vec<Match>,
    /// What a quick version leaves out.
    #[serde(default)]
    quick: Option<Quick>,
    /// What trials cost.
    #[serde(default)]
    pub estimate: Costs,
    /// What the report shows.
    #[serde(default)]
    pub report: ReportSpec,
    /// The name of the file, for messages.
    #[serde(skip)]
    pub file: String,
}

/// One thing that varies.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Its name: a column of the tables.
    pub name: String,
    /// What it may be.
    pub values: Vec<Value>,
}

/// One value of an axis: a named fragment of `run.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// Its name in tables and plots.
    pub name: String,
    /// What it sets.
    #[serde(default)]
    pub set: Table,
    /// How much longer a training step takes than that of a value of cost 1.
    #[serde(default = "one")]
    pub cost: f64,
}

fn one() -> f64 {
    1.0
}

/// Points of the grid: those that have one of the listed values on every axis that is named.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Match(BTreeMap<String, OneOrMore>);

/// What points have besides what their values say.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Which points.
    pub when: Match,
    /// What they set; it comes after what their values set.
    pub set: Table,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::More(names) => names,
        }
    }
}

/// How a grid becomes one that ends soon.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Quick {
    /// Seeds in place of the grid's.
    seeds: Option<Vec<u64>>,
    /// What it sets in the base.
    set: Table,
    /// Of these axes, these values only.
    keep: BTreeMap<String, Vec<String>>,
    /// Axes in place of those of the same name.
    axis: Vec<Axis>,
}

impl Grid {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ExperimentError> {
        let text = fs::read_to_string(path).map_err(ExperimentError::file(path))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Reads and checks the text of the file `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self, ExperimentError> {
        let mut grid: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            ExperimentError::Syntax { file: name.to_owned(), line, message }
        })?;
        grid.file = name.to_owned();
        grid.check()?;
        // A quick version that cannot be is better known before it is asked for.
        if grid.quick.is_some() {
            grid.quick()?;
        }
        Ok(grid)
    }

    /// The quick version.
    pub fn quick(&self) -> Result<Self, ExperimentError> {
        let mut grid = self.clone();
        let Some(quick) = grid.quick.take() else {
            return Err(self.error("there is no [quick] section: write one, or leave --quick out"));
        };
        if let Some(seeds) = quick.seeds {
            grid.seeds = seeds;
        }
        crate::merge::merge(&mut grid.base, &quick.set);
        for axis in quick.axis {
            match grid.axes.iter_mut().find(|own| own.name == axis.name) {
                Some(own) => *own = axis,
                None => return Err(self.no_axis("[[quick.axis]]", &axis.name)),
            }
        }
        for (name, kept) in &quick.keep {
            let Some(axis) = grid.axes.iter_mut().find(|axis| axis.name == *name) else {
                return Err(self.no_axis("[quick] keep", name));
            };
            if let Some(stray) = kept.iter().find(|kept| axis.value(kept).is_none()) {
                return Err(self.no_value("[quick] keep", axis, stray));
            }
            axis.values.retain(|value| kept.contains(&value.name));
        }
        // What no point of the quick grid has is not a mistake there.
        grid.overrides.retain_mut(|own| own.when.narrow(&grid.axes));
        grid.exclude.retain_mut(|excluded| excluded.narrow(&grid.axes));
        grid.check()?;
        Ok(grid)
    }

    fn check(&self) -> Result<(), ExperimentError> {
        if self.seeds.is_empty() {
            return Err(self.error("seeds is empty: name at least one"));
        }
        if self.seeds.iter().collect::<BTreeSet<_>>().len() < self.seeds.len() {
            return Err(self.error("seeds names one twice: keep one of them"));
        }
        let mut names = BTreeSet::new();
        for axis in &self.axes {
            if axis.name.is_empty() || axis.name == "seed" || !names.insert(&axis.name) {
                let name = &axis.name;
                return Err(
                    self.error(&format!("axis {name:?} is empty, reserved or there twice: rename it"))
                );
            }
            self.check_axis(axis)?;
        }
        self.overrides.iter().try_for_each(|own| self.check_match("[[override]] when", &own.when))?;
        self.exclude.iter().try_for_each(|excluded| self.check_match("exclude", excluded))?;
        let plotted = self.report.plots.iter().flat_map(|plot| plot.axes());
        match plotted.into_iter().find(|name| !names.iter().any(|own| own == name)) {
            Some(name) => Err(self.no_axis("[[report.plot]]", name)),
            None => Ok(()),
        }
    }

    fn check_axis(&self, axis: &Axis) -> Result<(), ExperimentError> {
        let wrong = |message: String| Err(self.error(&format!("axis {:?}: {message}", axis.name)));
        if axis.values.is_empty() {
            return wrong("there is no value: name at least one".to_owned());
        }
        let mut names = BTreeSet::new();
        for value in &axis.values {
            if value.name.is_empty() || !names.insert(&value.name) {
                return wrong(format!("the value {:?} is empty or there twice: rename it", value.name));
            }
            if !(value.cost.is_finite() && value.cost > 0.0) {
                return wrong(format!("cost of {:?} must be above 0, not {}", value.name, value.cost));
            }
        }
        Ok(())
    }

    fn check_match(&self, place: &str, points: &Match) -> Result<(), ExperimentError> {
        for (name, values) in &points.0 {
            let Some(axis) = self.axes.iter().find(|axis| axis.name == *name) else {
                return Err(self.no_axis(place, name));
            };
            if let Some(stray) = values.names().iter().find(|value| axis.value(value).is_none()) {
                return Err(self.no_value(place, axis, stray));
            }
        }
        Ok(())
    }

    /// A mistake in this file.
    pub(crate) fn error(&self, message: &str) -> ExperimentError {
        ExperimentError::Grid { file: self.file.clone(), message: message.to_owned() }
    }

    fn no_axis(&self, place: &str, name: &str) -> ExperimentError {
        let known: Vec<&str> = self.axes.iter().map(|axis| axis.name.as_str()).collect();
        self.error(&format!("{place}: there is no axis {name:?}: the axes are {}", known.join(", ")))
    }

    fn no_value(&self, place: &str, axis: &Axis, name: &str) -> ExperimentError {
        let known: Vec<&str> = axis.values.iter().map(|value| value.name.as_str()).collect();
        let axis = &axis.name;
        self.error(&format!("{place}: {axis} has no value {name:?}: its values are {}", known.join(", ")))
    }
}

impl Axis {
    fn value(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|value| value.name == name)
    }
}

impl Match {
    /// Whether the point with these values, one of each axis, is one of them.
    pub(crate) fn holds(&self, axes: &[Axis], point: &[String]) -> bool {
        let of = |name: &str| axes.iter().position(|axis| axis.name == name).and_then(|at| point.get(at));
        self.0.iter().all(|(name, values)| of(name).is_some_and(|own| values.names().contains(own)))
    }

    /// Forgets values that these axes do not have; whether any point is left.
    fn narrow(&mut self, axes: &[Axis]) -> bool {
        self.0.iter_mut().all(|(name, values)| {
            let Some(axis) = axes.iter().find(|axis| axis.name == *name) else { return false };
            let kept = values.names().iter().filter(|value| axis.value(value).is_some());
            *values = OneOrMore::More(kept.cloned().collect());
            !values.names().is_empty()
        })
    }
}

#[cfg(test)]
mod tests;
