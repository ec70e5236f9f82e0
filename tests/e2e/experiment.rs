//! A grid of simulations, killed in the middle.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use serde_json::Value;

use crate::support::{CONFIG, Running, Workspace, fedpeft, succeed, until};

/// The small federation with two seeds, the head alone and two rounds.
fn grid() -> String {
    let base: String = CONFIG
        .lines()
        .map(|line| match line.strip_prefix('[') {
            Some(section) => format!("[base.{section}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    let small = base.replace("rounds = 3", "rounds = 2").replace("method = \"bias\"", "");
    format!(
        "title = 'heads'\nseeds = [1, 2]\n{small}\n[[axis]]\nname = 'method'\n\
         values = [{{ name = 'head', set = {{ model.method = 'head' }} }}]\n[report]\ntargets = [0.01]\n"
    )
}

fn experiment(workspace: &Workspace, options: &[&str]) -> Command {
    let mut command = fedpeft();
    command.arg("experiment").arg(workspace.path("grid.toml")).args(["--jobs", "1"]).args(options);
    command.arg("--cache").arg(crate::support::artifact_cache());
    command
}

fn finished(results: &Path) -> Vec<(PathBuf, SystemTime)> {
    let entries = fs::read_dir(results.join("trials")).into_iter().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::metadata(path).unwrap().modified().unwrap()))
        .collect();
    found.sort();
    found
}

#[test]
fn an_experiment_that_is_killed_goes_on_and_reports() {
    let workspace = Workspace::new();
    fs::write(workspace.path("grid.toml"), grid()).unwrap();
    let listed: Value =
        serde_json::from_str(&succeed(experiment(&workspace, &["--dry-run", "--json"]))).unwrap();
    assert_eq!(listed["trials"].as_array().unwrap().len(), 2);

    let results = workspace.path("grid.results");
    let running = Running::start(experiment(&workspace, &[]), &workspace.path("log"));
    // The first is finished, the second is under way.
    until(|| {
        let begun = fs::read_dir(results.join("work")).ok()?.count() == 1;
        (finished(&results).len() == 1 && begun).then_some(())
    });
    let before = finished(&results);
    running.crash();

    let markdown = workspace.path("results.md");
    fs::write(&markdown, "# Ours\n").unwrap();
    let table = succeed(experiment(&workspace, &["--markdown", &markdown.to_string_lossy()]));
    assert!(table.contains("2 of 2 trials are finished, 0 failed"), "{table}");
    let after = finished(&results);
    assert_eq!(after.len(), 2);
    assert!(after.contains(&before[0]), "a finished trial was run again");
    assert_eq!(fs::read_dir(results.join("work")).unwrap().count(), 0);

    let rounds = fs::read_to_string(results.join("rounds.csv")).unwrap();
    assert_eq!(rounds.lines().count(), 1 + 2 * 2, "{rounds}");
    let page = fs::read_to_string(results.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    let text = fs::read_to_string(&markdown).unwrap();
    assert!(text.starts_with("# Ours\n") && text.contains("| head | 2 |"), "{text}");
    assert!(workspace.path("results/grid/accuracy-by-mib.svg").is_file());

    // All is done: nothing is run, the same is said.
    let again: Value = serde_json::from_str(&succeed(experiment(&workspace, &["--json"]))).unwrap();
    assert_eq!(again["groups"][0]["finished"], 2);
    assert_eq!(finished(&results), after);
}
