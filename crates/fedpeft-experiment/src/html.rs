//! The report as one HTML page that needs nothing else.

use fedpeft_page::{Figure, Page};

use crate::{summary::Summary, tables};

/// The page.
pub fn page(summary: &Summary, file: &str, figures: &[Figure]) -> String {
    let mut page = Page::new(&summary.title);
    for paragraph in summary.about.split("\n\n").filter(|text| !text.trim().is_empty()) {
        page.paragraph(paragraph.trim());
    }
    let versions: Vec<String> =
        summary.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    page.code(&summary.command);
    page.paragraph(&format!(
        "{} of {} trials are finished, {} failed. On {}{}{}.",
        summary.count("finished"),
        summary.trials.len(),
        summary.count("failed"),
        summary.machine.describe(),
        if versions.is_empty() { "" } else { "; " },
        versions.join(", "),
    ));
    page.heading("Results");
    page.paragraph(
        "Means ± standard deviations over seeds of held-out accuracy after the last round; bytes are those of messages \
         and blobs that crossed the wire, up and down, without backbone and artifacts, which a client fetches once.",
    );
    page.table(&tables::results(summary));
    page.heading("Plots");
    page.figures(figures);
    page.heading("By round");
    page.table(&tables::by_round(summary));
    page.heading("Trials");
    page.marked_table(&tables::trials(summary), |row| {
        summary.trials.get(row).map_or("", |trial| trial.status)
    });
    page.heading("The grid");
    page.code(file);
    page.html()
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
