//! `docs/performance.md`: the figures as tables and plots, between the marks of a page that is otherwise prose.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use fedpeft_page::{Chart, Line, Marks, Point, Table, XAxis, YAxis, inject};

use crate::{
    figure::{Figure, Report, Section},
    targets,
};

/// Folder of the plots, beside the page.
const PLOTS: &str = "performance";

fn docs() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).join("docs")
}

/// Writes the page and its plots; the prose of the page stays.
pub fn write(report: &Report) -> Result<()> {
    let (page, plots) = (docs().join("performance.md"), docs().join(PLOTS));
    let mut text = fs::read_to_string(&page).unwrap_or_default();
    fs::create_dir_all(&plots).with_context(|| format!("cannot make {}", plots.display()))?;
    for (name, part) in parts(report, &plots)? {
        text = inject(&text, &name, &part);
    }
    fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))
}

/// All parts by the names of their marks.
fn parts(report: &Report, plots: &Path) -> Result<Vec<(String, String)>> {
    let mut parts = vec![
        ("machine".to_owned(), machine(report)),
        ("targets".to_owned(), targets::targets(report).markdown()),
        ("peers".to_owned(), targets::peers(report).markdown()),
    ];
    for section in Section::value_variants() {
        let figures: Vec<&Figure> =
            report.figures.iter().filter(|figure| figure.section == *section).collect();
        if figures.is_empty() {
            continue;
        }
        let name = section.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let mut part =
            vec![format!("```sh\ncargo xtask bench --only {name}\n```"), table(&figures).markdown()];
        let drawn: Vec<String> = charts(report, *section)
            .into_iter()
            .map(|(file, chart)| {
                let path = plots.join(format!("{file}.svg"));
                fs::write(&path, chart.draw(&file)? + "\n")
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(format!("![{}]({PLOTS}/{file}.svg)", chart.title))
            })
            .collect::<Result<_>>()?;
        if !drawn.is_empty() {
            part.push(drawn.join("\n"));
        }
        parts.push((name, part.join("\n\n")));
    }
    Ok(parts)
}

fn machine(report: &Report) -> String {
    let Report { machine, build, day, quick, .. } = report;
    let quick = if *quick { ", in the quick settings" } else { "" };
    let debug = if build == "release" { "" } else { ", **of a build without optimizations**" };
    format!("Measured on {day}{quick}{debug}, on {machine}.")
}

/// One row for each figure.
fn table(figures: &[&Figure]) -> Table {
    let has = |is: fn(&Figure) -> bool| figures.iter().any(|figure| is(figure));
    let (has_x, has_reference) = (has(|figure| figure.x.is_some()), has(|figure| figure.reference.is_some()));
    let mut header = vec!["what", ""];
    header.extend(has_x.then(|| along(figures[0].section)));
    header.push("measured");
    if has_reference {
        header.extend(["reference", "ratio"]);
    }
    let mut table = Table::new(&header);
    for figure in figures {
        let mut row = vec![figure.name.clone(), figure.what.clone()];
        if has_x {
            row.push(figure.x.map_or_else(String::new, |x| {
                if x.fract() == 0.0 { format!("{x}") } else { format!("{x:.2}") }
            }));
        }
        row.push(format!("{} {}", figure.value, figure.unit));
        if has_reference {
            let reference = figure.reference.as_ref();
            row.push(reference.map_or_else(String::new, |reference| {
                format!("{}: {} {}", reference.name, reference.value, figure.unit)
            }));
            row.push(figure.ratio.map_or_else(String::new, |ratio| ratio.to_string()));
        }
        table.rows.push(row);
    }
    table
}

/// What lines of a section grow with.
fn along(section: Section) -> &'static str {
    match section {
        Section::Rounds => "clients",
        Section::Train => "tokens",
        Section::Memory => "clients or MiB",
        _ => "bytes",
    }
}

/// A chart of lines of one section; none, if there is no line of two points.
fn chart(
    report: &Report,
    section: Section,
    title: &str,
    (x, log, y): (&str, bool, &str),
    lines: &[(&str, &str, &str)],
) -> Option<Chart> {
    let line = |(shown, name, what): &(&str, &str, &str)| {
        let points = targets::line(report, section, name, what).into_iter();
        let points = points.filter_map(|figure| Some(Point::new(figure.x?, figure.value.median)));
        Line { name: (*shown).into(), points: points.collect() }
    };
    let lines: Vec<Line> = lines.iter().map(line).filter(|line| line.points.len() > 1).collect();
    let top = lines.iter().flat_map(|line| &line.points).map(|point| point.y).fold(0.0, f64::max);
    (!lines.is_empty()).then(|| Chart {
        title: title.into(),
        x: XAxis::Numbers { label: x.into(), log },
        y_label: y.into(),
        y: if log { YAxis::Log } else { YAxis::UpTo(top * 1.1) },
        marks: Marks::Lines,
        lines,
    })
}

/// The plots of a section, by the names of their files.
fn charts(report: &Report, section: Section) -> Vec<(String, Chart)> {
    let drawn = match section {
        Section::Rounds => vec![
            (
                "rounds",
                chart(
                    report,
                    section,
                    "Seconds of a round by clients",
                    ("clients", true, "seconds"),
                    &[("bias", "bias", "round"), ("LoRA", "LoRA", "round")],
                ),
            ),
            (
                "aggregator",
                chart(
                    report,
                    section,
                    "Peak memory of the aggregator by clients of a round",
                    ("clients", false, "MiB"),
                    &[("bias", "bias", "aggregator"), ("LoRA", "LoRA", "aggregator")],
                ),
            ),
        ],
        Section::Train => vec![("tokens", tokens(report))],
        Section::Memory => vec![
            (
                "worker",
                chart(
                    report,
                    section,
                    "Peak memory of a worker by clients it hosts",
                    ("clients", false, "MiB"),
                    &[("bias", "bias", "worker by clients")],
                ),
            ),
            ("adapter", by_adapter(report)),
            ("backbone", by_backbone(report)),
        ],
        _ => vec![],
    };
    drawn.into_iter().filter_map(|(name, chart)| Some((name.to_owned(), chart?))).collect()
}

/// A line through figures of one section that have different names.
fn across(report: &Report, section: Section, shown: &str, is_one: impl Fn(&Figure) -> bool) -> Line {
    let figures = report.figures.iter().filter(|figure| figure.section == section && is_one(figure));
    let mut points: Vec<Point> =
        figures.filter_map(|figure| Some(Point::new(figure.x?, figure.value.median))).collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    Line { name: shown.into(), points }
}

fn of_lines(title: &str, x: &str, y: &str, lines: Vec<Line>) -> Option<Chart> {
    let top = lines.iter().flat_map(|line| &line.points).map(|point| point.y).fold(0.0, f64::max);
    let label = x.to_owned();
    lines.iter().any(|line| line.points.len() > 1).then(|| Chart {
        title: title.into(),
        x: XAxis::Numbers { label, log: false },
        y_label: y.into(),
        y: YAxis::UpTo(top * 1.1),
        marks: Marks::Lines,
        lines,
    })
}

fn tokens(report: &Report) -> Option<Chart> {
    let line = |name: &'static str| {
        across(report, Section::Train, name, |figure| {
            figure.name == name && figure.what.ends_with("batch 32")
        })
    };
    of_lines(
        "Milliseconds of a step by tokens",
        "tokens",
        "ms per image",
        vec![line("forward"), line("bias")],
    )
}

fn by_adapter(report: &Report) -> Option<Chart> {
    let lines = ["worker", "aggregator", "nats-server"].map(|process| {
        let what = format!("{process} by adapter MiB");
        across(report, Section::Memory, process, |figure| figure.what == what)
    });
    of_lines("Peak memory by size of the adapter, ten clients", "MiB of the adapter", "MiB", lines.into())
}

fn by_backbone(report: &Report) -> Option<Chart> {
    let line = across(report, Section::Memory, "worker", |figure| figure.what == "worker by backbone MiB");
    of_lines("Peak memory of a worker by size of the backbone", "MiB of the backbone", "MiB", vec![line])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Spread;

    #[test]
    fn parts_have_commands_tables_and_plots() {
        let round = |clients: f64, seconds: f64| {
            let figure = Figure::new(Section::Rounds, "bias", "round").at(clients);
            figure.is(Spread::one(seconds), "s").beside("raw publishing", Spread::one(seconds / 2.0))
        };
        let report = Report { figures: vec![round(10.0, 0.1), round(100.0, 1.0)], ..Report::default() };
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(&report, folder.path()).unwrap();
        let rounds = &parts.iter().find(|(name, _)| name == "rounds").unwrap().1;
        assert!(rounds.contains("cargo xtask bench --only rounds"));
        assert!(
            rounds.contains("| bias | round | 100 | 1.00 s | raw publishing: 0.500 s | 2.00 |"),
            "{rounds}"
        );
        assert!(rounds.contains("(performance/rounds.svg)"));
        assert!(fs::read_to_string(folder.path().join("rounds.svg")).unwrap().starts_with("<svg"));
    }
}
