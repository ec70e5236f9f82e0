//! `fedpeft report` as a browser shows it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Workspace, fedpeft, succeed, text};

/// Browsers that can be asked without a screen, by the names that Debian gives them.
const BROWSERS: [&str; 4] = ["chromium-headless-shell", "chromium", "google-chrome", "chrome"];

/// A browser: the one that `FEDPEFT_CHROMIUM` names, else one that is installed.
fn browser() -> Option<PathBuf> {
    if let Some(named) = env::var_os("FEDPEFT_CHROMIUM").filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).collect();
    BROWSERS
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

/// What the browser makes of a page: its document, and what it complained about.
fn browse(browser: &Path, page: &Path, options: &[&str]) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(browser);
    // Containers have no user namespaces and a small /dev/shm.
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.args(["--hide-scrollbars", "--enable-logging=stderr", "--window-size=1360,2200"]);
    command.arg(format!("--user-data-dir={}", profile.path().display())).args(options);
    let output = command.arg(format!("file://{}", page.display())).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Width, height and the colours of a few thousand places of a PNG.
fn colours(path: &Path) -> ((u32, u32), usize) {
    let picture = image::open(path).unwrap().to_rgb8();
    let mut seen: Vec<[u8; 3]> = picture.pixels().step_by(97).map(|pixel| pixel.0).collect();
    seen.sort_unstable();
    seen.dedup();
    (picture.dimensions(), seen.len())
}

#[test]
fn a_browser_shows_the_report_and_has_no_complaint() {
    let workspace = Workspace::new();
    let page = workspace.path("report.html");
    let mut simulate = workspace.simulate(&["--rounds", "2", "--name", "seen", "--html"]);
    simulate.arg(&page);
    succeed(simulate);
    let html = fs::read_to_string(&page).unwrap();

    // The JSON report makes the same page, and a table of rounds.
    let from = |output: &str| {
        let mut report = fedpeft();
        report
            .arg("report")
            .arg("--from")
            .arg(workspace.path("report.json"))
            .arg("-o")
            .arg(workspace.path(output));
        succeed(report);
        fs::read_to_string(workspace.path(output)).unwrap()
    };
    assert_eq!(from("again.html"), html);
    assert_eq!(from("rounds.csv").lines().count(), 3);

    let Some(browser) = browser() else {
        eprintln!(
            "skipped: there is no Chromium to look at the page with; `apt-get install chromium-headless-shell`, or name one \
             in FEDPEFT_CHROMIUM"
        );
        return;
    };
    let (document, complaints) = browse(&browser, &page, &["--dump-dom"]);
    for expected in
        ["<h1>Run seen</h1>", "<th>status</th><td>completed</td>", "<td>4 of 4</td>", "full fine-tuning"]
    {
        assert!(document.contains(expected), "no {expected} in {document}");
    }
    for plot in ["accuracy", "loss", "bytes", "cumulative-bytes", "seconds", "clients"] {
        assert!(document.contains(&format!("id=\"{plot}\"")), "no plot {plot}");
    }
    assert_eq!(document.matches("<svg").count(), document.matches("</svg>").count());
    let picture = workspace.path("report.png");
    let shot = format!("--screenshot={}", picture.display());
    let (_, more) = browse(&browser, &page, &[&shot]);
    // The page's policy forbids what it does not need: whatever was refused would be missing.
    for said in [complaints, more] {
        assert!(!said.contains("CONSOLE") && !said.contains("Content Security Policy"), "{said}");
    }
    let (size, seen) = colours(&picture);
    assert_eq!(size, (1360, 2200));
    assert!(seen > 20, "the picture has {seen} colours: is it blank?");
}
