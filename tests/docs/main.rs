//! The documents: every page is in the table of contents, and every link leads somewhere.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A page: where its links lead, and the anchors of its headings.
struct Page {
    links: Vec<String>,
    anchors: BTreeSet<String>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (mut links, mut anchors, mut heading) = (Vec::new(), BTreeSet::new(), None);
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    anchors.extend(heading.take().map(|heading| anchor(&heading)));
                }
                _ => {}
            }
        }
        Self { links, anchors }
    }
}

/// The name by which a heading can be linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// `a/../b` as `b`.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => assert!(tidy.pop(), "{} leaves the repository", path.display()),
            other => tidy.push(other),
        }
    }
    tidy
}

/// Markdown files below a folder.
fn pages(folder: &Path, found: &mut BTreeMap<PathBuf, Page>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "md") {
            let page = Page::read(&path);
            found.insert(path, page);
        }
    }
}

fn all() -> BTreeMap<PathBuf, Page> {
    let mut found = BTreeMap::new();
    for folder in ["docs", "grafana", "k8s"] {
        pages(&root().join(folder), &mut found);
    }
    for file in ["README.md", "proto-schemas/README.md", "tests/golden/README.md", "fuzz/README.md"] {
        let path = root().join(file);
        let page = Page::read(&path);
        found.insert(path, page);
    }
    found
}

#[test]
fn every_link_leads_somewhere() {
    let pages = all();
    let mut broken = Vec::new();
    let mut tried = 0;
    for (path, page) in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target =
                if file.is_empty() { path.clone() } else { tidy(&path.parent().unwrap().join(file)) };
            let is_there = match anchor {
                None => target.exists(),
                Some(anchor) => pages.get(&target).is_some_and(|page| page.anchors.contains(anchor)),
            };
            tried += 1;
            if !is_there {
                broken.push(format!("{}: {link}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    assert!(tried > 100, "only {tried} links");
}

#[test]
fn every_page_is_in_the_table_of_contents_once() {
    let docs = root().join("docs");
    let summary = Page::read(&docs.join("SUMMARY.md"));
    let listed: Vec<PathBuf> = summary.links.iter().map(|link| docs.join(link)).collect();
    let distinct: BTreeSet<&PathBuf> = listed.iter().collect();
    assert_eq!(distinct.len(), listed.len(), "a page is listed twice in docs/SUMMARY.md");
    let mut found = BTreeMap::new();
    pages(&docs, &mut found);
    let missing: Vec<String> = found
        .keys()
        .filter(|page| !page.ends_with("SUMMARY.md") && !distinct.contains(page))
        .map(|page| page.strip_prefix(&docs).unwrap().display().to_string())
        .collect();
    assert!(missing.is_empty(), "docs/SUMMARY.md does not list {}", missing.join(", "));
}
