//! Parts of Markdown files, between two marks, so that the file around them can be prose.

use crate::Table;

impl Table {
    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |", cells.join(" | "))
        };
        let rule: Vec<String> = self.header.iter().map(|_| "---".to_owned()).collect();
        let rows = self.rows.iter().map(|row| line(row));
        [line(&self.header), line(&rule)].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_put_in_and_replaced() {
        let once = inject("# Results\n\nProse.\n", "methods", "first");
        assert_eq!(once, "# Results\n\nProse.\n\n<!-- begin methods -->\n\nfirst\n\n<!-- end methods -->\n");
        let with_more = format!("{once}\nMore.\n");
        let twice = inject(&with_more, "methods", "second");
        assert_eq!(twice, with_more.replace("first", "second"));
        assert_eq!(inject("", "m", "x"), "<!-- begin m -->\n\nx\n\n<!-- end m -->\n");
    }
}
