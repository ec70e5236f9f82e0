//! The report as a section of a Markdown file, between two marks, so that the file around it can be prose.

use fedpeft_page::{Figure, Table};

use crate::{summary::Summary, tables};

/// The section: how it was made, results, plots, accuracy by round. `plots` is the folder of the plots, as the file
/// names it.
pub fn section(summary: &Summary, figures: &[Figure], plots: &str) -> String {
    let mut parts = vec![format!("```sh\n{}\n```", summary.command)];
    let (finished, asked) = (summary.count("finished"), summary.trials.len());
    parts.push(format!("{finished} of {asked} trials, on {}.", summary.machine.describe()));
    parts.push(table(&tables::results(summary)));
    let image = |figure: &Figure| format!("![{}]({plots}/{}.svg)", figure.title, figure.name);
    parts.push(figures.iter().map(image).collect::<Vec<_>>().join("\n"));
    parts.push(table(&tables::by_round(summary)));
    parts.join("\n\n")
}

/// Puts the section `name` into a text: in place of the one that is there, else at its end.
pub fn inject(text: &str, name: &str, section: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->"), format!("<!-- end {name} -->"));
    let whole = format!("{begin}\n\n{section}\n\n{end}");
    let old = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    match old {
        Some((before, after)) => format!("{before}{whole}{after}"),
        None if text.is_empty() => whole + "\n",
        None => format!("{}\n\n{whole}\n", text.trim_end()),
    }
}

fn table(table: &Table) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |", cells.join(" | "))
    };
    let rule: Vec<String> = table.header.iter().map(|_| "---".to_owned()).collect();
    let rows = table.rows.iter().map(|row| line(row));
    [line(&table.header), line(&rule)].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::summary;

    #[test]
    fn a_section_is_put_in_and_replaced() {
        let once = inject("# Results\n\nProse.\n", "methods", "first");
        assert_eq!(once, "# Results\n\nProse.\n\n<!-- begin methods -->\n\nfirst\n\n<!-- end methods -->\n");
        let with_more = format!("{once}\nMore.\n");
        let twice = inject(&with_more, "methods", "second");
        assert_eq!(twice, with_more.replace("first", "second"));
        assert_eq!(inject("", "m", "x"), "<!-- begin m -->\n\nx\n\n<!-- end m -->\n");
    }

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
