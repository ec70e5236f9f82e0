//! A page of HTML that needs nothing else.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use crate::{chart::Figure, table::Table};

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1360px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem; border-bottom: 1px solid #8886; }
.facts th { font-weight: 600; white-space: nowrap; vertical-align: top; }
.wide { overflow-x: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots svg { max-width: 100%; height: auto; }
figure { margin: 0; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8886; }
.missing { opacity: .6; } .failed { color: #d9534f; }
";

/// A page as it is written, from top to bottom. Whatever it is given is text, and shown as such.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page of this title.
    pub fn new(title: &str) -> Self {
        let title = escape(title);
        Self { body: format!("<h1>{title}</h1>\n"), title }
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        self.element("h2", text);
    }

    /// A paragraph.
    pub fn paragraph(&mut self, text: &str) {
        self.element("p", text);
    }

    /// Text as it is, in a fixed width.
    pub fn code(&mut self, text: &str) {
        self.element("pre", text);
    }

    /// A table.
    pub fn table(&mut self, table: &Table) {
        self.marked_table(table, |_| "");
    }

    /// A table whose rows have classes: `missing` and `failed` ones look like it.
    pub fn marked_table(&mut self, table: &Table, class: impl Fn(usize) -> &'static str) {
        let cells = |row: &[String], tag: &str| {
            row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect::<String>()
        };
        self.body += &format!("<div class=\"wide\"><table>\n<tr>{}</tr>\n", cells(&table.header, "th"));
        for (index, row) in table.rows.iter().enumerate() {
            self.body += &match class(index) {
                "" => format!("<tr>{}</tr>\n", cells(row, "td")),
                class => format!("<tr class=\"{class}\">{}</tr>\n", cells(row, "td")),
            };
        }
        self.body += "</table></div>\n";
    }

    /// Names and what they stand for.
    pub fn facts<'a>(&mut self, facts: impl IntoIterator<Item = (&'a str, String)>) {
        self.body += "<div class=\"wide\"><table class=\"facts\">\n";
        for (name, value) in facts {
            self.body += &format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(&value));
        }
        self.body += "</table></div>\n";
    }

    /// Plots, as many beside one another as there is room for.
    pub fn figures(&mut self, figures: &[Figure]) {
        self.body += "<div class=\"plots\">\n";
        for Figure { name, title, svg } in figures {
            let (name, label) = (escape(name), escape(title));
            self.body += &format!("<figure aria-label=\"{label}\" id=\"{name}\">\n{svg}</figure>\n");
        }
        self.body += "</div>\n";
    }

    /// The HTML. Its policy allows the one style in it and nothing else: neither scripts nor anything from elsewhere.
    pub fn html(&self) -> String {
        let Self { title, body } = self;
        let style = STANDARD.encode(Sha256::digest(STYLE));
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{style}'\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
        )
    }

    fn element(&mut self, tag: &str, text: &str) {
        self.body += &format!("<{tag}>{}</{tag}>\n", escape(text));
    }
}

/// Text as HTML that shows it, between tags and in quoted attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_text() {
        let evil = "<script>alert('x')</script> \"&";
        let mut page = Page::new(evil);
        page.heading(evil);
        page.paragraph(evil);
        page.code(evil);
        page.facts([(evil, evil.to_owned())]);
        page.table(&Table { header: vec![evil.into()], rows: vec![vec![evil.into()]] });
        let svg = String::from("<svg></svg>");
        page.figures(&[Figure { name: evil.into(), title: evil.into(), svg }]);
        let html = page.html();
        assert!(!html.contains("<script") && !html.contains("alert('"), "{html}");
        assert_eq!(html.matches("&lt;script&gt;alert(&#39;x&#39;)").count(), 11);
        assert!(html.contains("<svg></svg>"));
    }

    #[test]
    fn a_page_needs_nothing_and_may_do_nothing() {
        let html = Page::new("t").html();
        assert!(html.contains("default-src 'none'; style-src 'sha256-"));
        assert!(!html.contains("src=") && !html.contains("href="));
    }
}
