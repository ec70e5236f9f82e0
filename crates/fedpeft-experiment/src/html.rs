//! The report as one HTML page that needs nothing else.

use std::fmt::Write as _;

use crate::{figures::Figure, summary::Summary, tables::Table};

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1360px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem; border-bottom: 1px solid #8886; }
.wide { overflow-x: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots svg { max-width: 100%; height: auto; }
figure { margin: 0; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8886; }
.missing { opacity: .6; } .failed { color: #d9534f; }";

/// The page.
pub fn page(summary: &Summary, file: &str, figures: &[Figure]) -> String {
    let mut html = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut html, summary, file, figures);
    html
}

fn write(html: &mut String, summary: &Summary, file: &str, figures: &[Figure]) -> std::fmt::Result {
    let title = escape(&summary.title);
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>\n{STYLE}\n</style>\n\
         <h1>{title}</h1>\n"
    )?;
    for paragraph in summary.about.split("\n\n").filter(|text| !text.trim().is_empty()) {
        writeln!(html, "<p>{}</p>", escape(paragraph.trim()))?;
    }
    let versions: Vec<String> =
        summary.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    writeln!(
        html,
        "<pre>{}</pre>\n<p>{} of {} trials are finished, {} failed. On {}{}{}.</p>",
        escape(&summary.command),
        summary.count("finished"),
        summary.trials.len(),
        summary.count("failed"),
        escape(&summary.machine.describe()),
        if versions.is_empty() { "" } else { "; " },
        escape(&versions.join(", ")),
    )?;
    html.push_str("<h2>Results</h2>\n<p>Means ± standard deviations over seeds of held-out accuracy after the last round; \
        bytes are those of messages and blobs that crossed the wire, up and down, without backbone and artifacts, which a \
        client fetches once.</p>\n");
    table(html, &Table::results(summary), |_| "")?;
    html.push_str("<h2>Plots</h2>\n<div class=\"plots\">\n");
    for figure in figures {
        let label = escape(&figure.title);
        writeln!(
            html,
            "<figure aria-label=\"{label}\" id=\"{}\">\n{}</figure>",
            escape(&figure.name),
            figure.svg
        )?;
    }
    html.push_str("</div>\n<h2>By round</h2>\n");
    table(html, &Table::by_round(summary), |_| "")?;
    html.push_str("<h2>Trials</h2>\n");
    table(html, &Table::trials(summary), |row| summary.trials.get(row).map_or("", |trial| trial.status))?;
    writeln!(html, "<h2>The grid</h2>\n<pre>{}</pre>\n</html>", escape(file))
}

fn table(html: &mut String, table: &Table, class: impl Fn(usize) -> &'static str) -> std::fmt::Result {
    let cells = |row: &[String], tag: &str| {
        row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect::<String>()
    };
    writeln!(html, "<div class=\"wide\"><table>\n<tr>{}</tr>", cells(&table.header, "th"))?;
    for (index, row) in table.rows.iter().enumerate() {
        writeln!(html, "<tr class=\"{}\">{}</tr>", class(index), cells(row, "td"))?;
    }
    html.push_str("</table></div>\n");
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Grid, figures,
        summary::tests::{GRID, summary},
    };

    #[test]
    fn the_page_has_everything_and_needs_nothing() {
        let summary = summary();
        let grid = Grid::parse("g.toml", GRID).unwrap();
        let figures = figures(&grid, &summary).unwrap();
        let html = page(&summary, GRID, &figures);
        assert_eq!(html.matches("<svg").count(), 5);
        for figure in &figures {
            assert!(html.contains(&format!("id=\"{}\"", figure.name)), "no plot {}", figure.name);
        }
        for text in [
            "Bias &lt;against&gt; full",
            "<p>Second.</p>",
            "fedpeft experiment g.toml",
            "6 of 8 trials are finished, 1 failed. On 2 cores, linux x86_64; fedpeft 0.1.0.",
            "0.425 ± 0.035",
            "class=\"failed\"",
            "failed: no quorum",
            "0.30 0.33 0.43",
            "title = &quot;Bias",
        ] {
            assert!(html.contains(text), "no {text}");
        }
        assert!(!html.contains("<script") && !html.contains("src=") && !html.contains("href="));
    }
}
