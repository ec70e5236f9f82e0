//! Which plots an experiment has.

use fedpeft_page::{Chart, Figure, Line, Marks, Point, XAxis, YAxis};
use serde::Deserialize;

use crate::{
    ExperimentError,
    grid::Grid,
    summary::{Group, Summary},
};

/// `[report]`: what is shown.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportSpec {
    /// Accuracies for which the tables say how many MiB they cost.
    pub targets: Vec<f64>,
    /// Plots; where there is none, accuracy by MiB and by round, and by every axis after the first.
    #[serde(rename = "plot")]
    pub plots: Vec<PlotSpec>,
}

/// One plot: held-out accuracy over something, a line for every value of one axis, a panel for every one of another.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlotSpec {
    /// `mib`, `round`, or the name of an axis: the accuracy of the last adapter over its values.
    pub x: String,
    /// The axis whose values are lines.
    pub lines: String,
    /// The axis whose values are panels.
    #[serde(default)]
    pub panels: Option<String>,
    /// Logarithms of MiB.
    #[serde(default)]
    pub log: bool,
}

impl PlotSpec {
    /// The axes it names.
    pub(crate) fn axes(&self) -> Vec<&str> {
        let x = (!matches!(self.x.as_str(), "mib" | "round")).then_some(self.x.as_str());
        x.into_iter().chain([self.lines.as_str()]).chain(self.panels.as_deref()).collect()
    }
}

/// All plots of a grid in which something is finished.
pub fn figures(grid: &Grid, summary: &Summary) -> Result<Vec<Figure>, ExperimentError> {
    let given = &grid.report.plots;
    let plots = if given.is_empty() { usual(&summary.axes) } else { given.clone() };
    let mut figures = Vec::new();
    for plot in &plots {
        for (name, chart) in (Planner { grid, summary, plot }).charts() {
            let panel = if chart.title.is_empty() { String::new() } else { format!(", {}", chart.title) };
            let title = format!("{} by {}{panel}", chart.y_label, plot.x);
            figures.push(chart.figure(&name, title)?);
        }
    }
    Ok(figures)
}

fn usual(axes: &[String]) -> Vec<PlotSpec> {
    let Some((lines, others)) = axes.split_first() else { return Vec::new() };
    let plot = |x: &str, panels: Option<&String>, log| PlotSpec {
        x: x.to_owned(),
        lines: lines.clone(),
        panels: panels.cloned(),
        log,
    };
    let by_axis = others.iter().map(|axis| plot(axis, None, false));
    [plot("mib", others.first(), true), plot("round", others.first(), false)]
        .into_iter()
        .chain(by_axis)
        .collect()
}

struct Planner<'a> {
    grid: &'a Grid,
    summary: &'a Summary,
    plot: &'a PlotSpec,
}

impl Planner<'_> {
    /// The panels with their names.
    fn charts(&self) -> Vec<(String, Chart)> {
        let top = self.top();
        let panels = match &self.plot.panels {
            None => vec![None],
            Some(axis) => self.values(axis).into_iter().map(|value| Some((axis.as_str(), value))).collect(),
        };
        let of_panel = |panel: Option<(&str, String)>| {
            let inside = |group: &&Group| {
                panel.as_ref().is_none_or(|(axis, value)| self.value(group, axis) == Some(value.as_str()))
            };
            let groups: Vec<&Group> = self.summary.groups.iter().filter(inside).collect();
            let lines = self.lines(&groups);
            if lines.is_empty() {
                return None;
            }
            let panel = panel.map(|(axis, value)| format!("{axis}={value}"));
            let file = ["accuracy-by", &self.plot.x].join("-")
                + &panel.iter().map(|own| format!("-{own}")).collect::<String>();
            let title = panel.unwrap_or_default();
            let y = YAxis::UpTo(top);
            let y_label = "accuracy".to_owned();
            Some((slug(&file), Chart { title, x: self.x(), y_label, y, marks: Marks::Lines, lines }))
        };
        panels.into_iter().filter_map(of_panel).collect()
    }

    fn x(&self) -> XAxis {
        match self.plot.x.as_str() {
            "mib" => XAxis::Numbers { label: "MiB up and down".to_owned(), log: self.plot.log },
            "round" => XAxis::Numbers { label: "round".to_owned(), log: false },
            axis => XAxis::Names { label: axis.to_owned(), names: self.values(axis) },
        }
    }

    /// A line for every value of its axis and of those that the plot does not name.
    fn lines(&self, groups: &[&Group]) -> Vec<Line> {
        let shown = self.plot.axes();
        let varies = |axis: &&String| self.values(axis).len() > 1 && !shown.contains(&axis.as_str());
        let others: Vec<&String> = self.summary.axes.iter().filter(varies).collect();
        let mut lines: Vec<Line> = Vec::new();
        for group in groups {
            let own = self.value(group, &self.plot.lines).unwrap_or_default().to_owned();
            let rest = others.iter().filter_map(|axis| Some(format!("{axis}={}", self.value(group, axis)?)));
            let name = std::iter::once(own).chain(rest).collect::<Vec<_>>().join(", ");
            let points = self.points(group);
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.extend(points),
                None => lines.push(Line { name, points }),
            }
        }
        lines.retain(|line| !line.points.is_empty());
        lines
    }

    fn points(&self, group: &Group) -> Vec<Point> {
        let by_round = |x: fn(&crate::summary::RoundSpread) -> f64| {
            let point = |round: &crate::summary::RoundSpread| {
                let accuracy = round.accuracy?;
                Some(Point { x: x(round), y: accuracy.mean, sd: accuracy.sd })
            };
            group.rounds.iter().filter_map(point).collect()
        };
        match self.plot.x.as_str() {
            "mib" => by_round(|round| round.mib),
            "round" => by_round(|round| f64::from(round.round)),
            axis => {
                let own = self.value(group, axis);
                let place = self.values(axis).iter().position(|value| Some(value.as_str()) == own);
                let point = place.zip(group.accuracy).map(|(place, accuracy)| Point {
                    x: place as f64,
                    y: accuracy.mean,
                    sd: accuracy.sd,
                });
                point.into_iter().collect()
            }
        }
    }

    /// The least tenth that no accuracy of the experiment lies above: panels are compared.
    fn top(&self) -> f64 {
        let of_round = |round: &crate::summary::RoundSpread| {
            let accuracy = round.accuracy?;
            Some(accuracy.mean + accuracy.sd.unwrap_or(0.0))
        };
        let all = self.summary.groups.iter().flat_map(|group| &group.rounds).filter_map(of_round);
        (10.0 * all.fold(0.1, f64::max)).ceil().min(10.0) / 10.0
    }

    fn values(&self, axis: &str) -> Vec<String> {
        let axis = self.grid.axes.iter().find(|own| own.name == axis);
        axis.map(|axis| axis.values.iter().map(|value| value.name.clone()).collect()).unwrap_or_default()
    }

    fn value<'b>(&self, group: &'b Group, axis: &str) -> Option<&'b str> {
        let at = self.summary.axes.iter().position(|own| own == axis)?;
        group.point.get(at).map(String::as_str)
    }
}

/// Text as the name of a file.
fn slug(text: &str) -> String {
    let plain = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' });
    plain.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::{GRID, summary};

    #[test]
    fn plots_are_usual_or_asked_for() {
        let names = |grid: &str| -> Vec<String> {
            let grid = Grid::parse("g", grid).unwrap();
            figures(&grid, &summary()).unwrap().into_iter().map(|figure| figure.name).collect()
        };
        let usual = names(GRID);
        assert_eq!(
            usual,
            [
                "accuracy-by-mib-alpha-0.1",
                "accuracy-by-mib-alpha-iid",
                "accuracy-by-round-alpha-0.1",
                "accuracy-by-round-alpha-iid",
                "accuracy-by-alpha"
            ]
        );
        let asked = format!("{GRID}\n[[report.plot]]\nx = 'alpha'\nlines = 'method'");
        assert_eq!(names(&asked), ["accuracy-by-alpha"]);
    }

    #[test]
    fn lines_are_named_by_what_tells_them_apart() {
        let grid = Grid::parse("g", GRID).unwrap();
        let summary = summary();
        let plot = PlotSpec { x: "mib".into(), lines: "method".into(), panels: None, log: false };
        let charts = Planner { grid: &grid, summary: &summary, plot: &plot }.charts();
        let names: Vec<&str> = charts[0].1.lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["bias, alpha=0.1", "bias, alpha=iid", "full, alpha=0.1"]);
        assert_eq!(
            charts[0].1.lines[0].points.iter().map(|point| point.x).collect::<Vec<_>>(),
            [2.0, 4.0, 6.0]
        );
        assert_eq!(charts[0].1.y, YAxis::UpTo(0.7));
    }

    #[test]
    fn a_plot_of_an_axis_that_is_not_there_is_refused() {
        let text = format!("{GRID}\n[[report.plot]]\nx = 'beta'\nlines = 'method'");
        let error = Grid::parse("g", &text).unwrap_err().to_string();
        assert!(error.contains("[[report.plot]]: there is no axis \"beta\""), "{error}");
    }
}
