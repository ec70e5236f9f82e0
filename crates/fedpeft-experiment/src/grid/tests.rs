use super::*;

const FILE: &str = r#"
title = "t"
seeds = [1, 2]
exclude = [{ method = "full", alpha = ["0.1"] }]

[base.run]
rounds = 5
[base.data]
partition = { kind = "dirichlet", alpha = 0.5 }
[base.simulate]
workers = 2

[[axis]]
name = "method"
values = [
    { name = "bias", set = { model.method = "bias" } },
    { name = "full", set = { model.method = "full", run.training.learning_rate = 3e-5 }, cost = 2.0 },
]

[[axis]]
name = "alpha"
values = [
    { name = "0.1", set = { data.partition.alpha = 0.1 } },
    { name = "iid", set = { data.partition = { kind = "iid" } } },
]

[[override]]
when = { method = ["bias", "full"], alpha = "iid" }
set = { run.training.learning_rate = 1e-3 }

[quick]
seeds = [1]
set = { run.rounds = 2 }
keep = { method = ["bias"] }
"#;

fn error(text: &str) -> String {
    let grid = Grid::parse("g.toml", text);
    grid.and_then(|grid| grid.trials()).unwrap_err().to_string()
}

#[test]
fn a_grid_expands_in_order() {
    let trials = Grid::parse("g.toml", FILE).unwrap().trials().unwrap();
    let labels: Vec<&str> = trials.iter().map(|trial| trial.label.as_str()).collect();
    let expected = [
        "method=bias alpha=0.1 seed=1",
        "method=bias alpha=0.1 seed=2",
        "method=bias alpha=iid seed=1",
        "method=bias alpha=iid seed=2",
        "method=full alpha=iid seed=1",
        "method=full alpha=iid seed=2",
    ];
    assert_eq!(labels, expected);
    let last = &trials[5];
    assert_eq!((last.seed, last.cost), (2, 2.0));
    assert_eq!(last.run["data"]["partition"], "x = { kind = 'iid' }".parse::<Table>().unwrap()["x"]);
    assert_eq!(last.run["run"]["training"]["learning_rate"].as_float(), Some(1e-3));
    for section in ["run", "data"] {
        assert_eq!(last.run[section]["seed"].as_integer(), Some(2));
    }
}

#[test]
fn a_quick_grid_is_a_smaller_one() {
    let quick = Grid::parse("g.toml", FILE).unwrap().quick().unwrap();
    let trials = quick.trials().unwrap();
    let labels: Vec<&str> = trials.iter().map(|trial| trial.label.as_str()).collect();
    assert_eq!(labels, ["method=bias alpha=0.1 seed=1", "method=bias alpha=iid seed=1"]);
    assert_eq!(trials[0].run["run"]["rounds"].as_integer(), Some(2));
    assert_eq!(trials[1].run["run"]["training"]["learning_rate"].as_float(), Some(1e-3));
    assert!(quick.quick().unwrap_err().to_string().contains("no [quick] section"));
}

#[test]
fn ids_are_made_of_what_is_run_and_of_nothing_else() {
    let ids = |text: &str| -> Vec<String> {
        let trials = Grid::parse("g.toml", text).unwrap().trials().unwrap();
        trials.iter().map(|trial| trial.id.to_string()).collect()
    };
    let own = ids(FILE);
    // Pinned: an id that changed would run again what is done.
    assert_eq!(own[0], "2f4d84eccec2");
    let renamed =
        FILE.replace("name = \"bias\"", "name = \"BitFit\"").replace("\"bias\", \"full\"]", "\"full\"]");
    assert_ne!(ids(&renamed.replace("keep = { method = [\"bias\"] }", ""))[2], own[2]);
    assert_eq!(ids(&renamed.replace("keep = { method = [\"bias\"] }", ""))[0], own[0]);
    assert_eq!(ids(&FILE.replace("workers = 2", "workers = 1\nthreads = 2")), own);
    assert_ne!(ids(&FILE.replace("rounds = 5", "rounds = 6"))[0], own[0]);
}

#[test]
fn mistakes_are_named() {
    let with = |from: &str, to: &str| error(&FILE.replacen(from, to, 1));
    assert!(error("title = 't'\nseeds = [1]\nbaes = {}").contains("g.toml line 3: unknown field `baes`"));
    assert!(with("seeds = [1, 2]", "seeds = []").contains("seeds is empty"));
    assert!(with("seeds = [1, 2]", "seeds = [1, 1]").contains("seeds names one twice"));
    assert!(with("{ method = \"full\"", "{ metod = \"full\"").contains("there is no axis \"metod\""));
    let error_of_value = with("alpha = \"iid\" }", "alpha = \"IID\" }");
    assert!(
        error_of_value.contains("alpha has no value \"IID\": its values are 0.1, iid"),
        "{error_of_value}"
    );
    assert!(with("name = \"alpha\"", "name = \"seed\"").contains("reserved"));
    assert!(with("cost = 2.0", "cost = -1.0").contains("cost of \"full\" must be above 0"));
    assert!(with("keep = { method = [\"bias\"] }", "keep = { method = [\"b\"] }").contains("[quick] keep"));
    let twins = error(
        "title = 't'\nseeds = [1]\nbase = {}\n[[axis]]\nname = 'a'\nvalues = [{ name = 'x' }, { name = 'y' }]",
    );
    assert!(twins.contains("a=x seed=1 and a=y seed=1 are the same run"), "{twins}");
    assert!(with("[base.run]\nrounds = 5", "[base]\nrun = 3").contains("base.run must be a table"));
}
