//! The report as a section of a Markdown file, between two marks, so that the file around it can be prose.

use fedpeft_page::Figure;

use crate::{summary::Summary, tables};

/// The section: how it was made, results, plots, accuracy by round. `plots` is the folder of the plots, as the file
/// names it.
pub fn section(summary: &Summary, figures: &[Figure], plots: &str) -> String {
    let mut parts = vec![format!("```sh\n{}\n```", summary.command)];
    let (finished, asked) = (summary.count("finished"), summary.trials.len());
    parts.push(format!("{finished} of {asked} trials, on {}.", summary.machine.describe()));
    parts.push(tables::results(summary).markdown());
    let image = |figure: &Figure| format!("![{}]({plots}/{}.svg)", figure.title, figure.name);
    parts.push(figures.iter().map(image).collect::<Vec<_>>().join("\n"));
    parts.push(tables::by_round(summary).markdown());
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::summary;

    #[test]
    fn the_section_has_tables_and_names_plots() {
        let figure = Figure { name: "by-mib".into(), title: "accuracy by mib".into(), svg: String::new() };
        let text = section(&summary(), &[figure], "results/g");
        for part in
            ["```sh\nfedpeft experiment g.toml\n```", "6 of 8 trials", "| bias | 0.1 | 2 | 0.425 ± 0.035 |"]
        {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert!(text.contains("![accuracy by mib](results/g/by-mib.svg)"));
    }
}
