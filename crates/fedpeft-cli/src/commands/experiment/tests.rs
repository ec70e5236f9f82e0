use std::fs;

use clap::Parser;
use fedpeft_experiment::Launch as _;

use super::*;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: Args,
}

fn args(words: &[&str]) -> Args {
    let shipped = ["experiment", "--assets", "/assets"];
    Program::parse_from(shipped.iter().chain(words)).args
}

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut grids: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    grids.sort();
    grids
}

#[test]
fn the_grids_that_are_shipped_are_right() {
    let grids = shipped();
    let names: Vec<_> = grids.iter().map(|path| path.file_stem().unwrap().to_string_lossy()).collect();
    let paper = ["exact", "methods", "participation", "privacy", "scarcity", "stability"];
    let paper = paper.map(|name| format!("paper-{name}"));
    let expected = [&["learning-rates".to_owned()], &paper[..], &["pipelines".to_owned()]].concat();
    assert_eq!(names, expected);
    for path in &grids {
        let grid = Grid::read(path).unwrap();
        for grid in [grid.quick().unwrap(), grid] {
            let args = args(&[&path.to_string_lossy()]);
            for trial in grid.trials().unwrap() {
                let shape = args.shape(&grid, &trial, path.parent().unwrap()).unwrap();
                assert!(
                    shape.estimate(&trial, &grid.estimate).passes.is_some(),
                    "{}: {}",
                    grid.file,
                    trial.label
                );
            }
        }
    }
}

#[test]
fn quick_grids_end_within_twenty_minutes_on_two_cores() {
    for path in shipped().iter().filter(|path| !path.ends_with("paper-exact.toml")) {
        let (args, grid) = (args(&[&path.to_string_lossy()]), Grid::read(path).unwrap().quick().unwrap());
        let trials = grid.trials().unwrap();
        let seconds = trials.iter().map(|trial| {
            let shape = args.shape(&grid, trial, Path::new("")).unwrap();
            f64::from(shape.cores) * shape.estimate(trial, &grid.estimate).seconds.unwrap()
        });
        let minutes = seconds.sum::<f64>() / 2.0 / 60.0;
        assert!(minutes < 20.0, "{}: {minutes}", grid.file);
    }
}

#[test]
fn a_key_that_run_toml_does_not_know_is_named_with_its_trial() {
    let text = "title = 't'\nseeds = [3]\n[base]\nrun = { rounds = 1, cohort = 1 }\nmodel = { name = 'm' }\n\
        [[axis]]\nname = 'a'\nvalues = [{ name = 'x', set = { run.cohrot = 2 } }]";
    let grid = Grid::parse("g.toml", text).unwrap();
    let error = args(&["g.toml"]).shape(&grid, &grid.trials().unwrap()[0], Path::new("")).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("g.toml (a=x seed=3): [run] unknown field `cohrot`"), "{error}");
    let text = text.replace("run.cohrot = 2", "run.cohort = 20");
    let grid = Grid::parse("g.toml", &text).unwrap();
    let error = args(&["g.toml"]).shape(&grid, &grid.trials().unwrap()[0], Path::new("")).unwrap_err();
    assert!(error.to_string().starts_with("g.toml (a=x seed=3): the cohort of 20 is larger"), "{error}");
}

#[test]
fn rows_of_a_simulation_are_rounds() {
    let places = args(&["g.toml"]).places;
    let simulate = Simulate { program: PathBuf::new(), base: PathBuf::new(), places: &places };
    assert_eq!(simulate.round("    3      4/4    0.5000"), Some(3));
    assert_eq!(simulate.round("round   cohort      loss"), None);
    assert_eq!(simulate.round("        client-001 dropped out"), None);
    assert_eq!(args(&["a/g.toml", "--quick"]).folder(), Path::new("a/g.quick.results"));
}
