//! What is aimed at, and what peers took.

use fedpeft_page::Table;

use crate::figure::{Figure, Report, Section, Spread, short};

/// One aim, and how it is read off the figures.
struct Target {
    what: &'static str,
    /// The most that it may be.
    most: f64,
    unit: &'static str,
    found: fn(&Report) -> Option<f64>,
}

fn ratio(report: &Report, section: Section, name: &str, what: &str, x: Option<f64>) -> Option<f64> {
    report.find(section, name, what, x)?.ratio.map(|ratio| ratio.median)
}

fn value(report: &Report, section: Section, name: &str, what: &str) -> Option<f64> {
    report.find(section, name, what, None).map(|figure| figure.value.median)
}

fn step(report: &Report, name: &str) -> Option<f64> {
    ratio(report, Section::Train, name, "56 px, batch 32", None)
}

/// Beside the forward pass of the model with the tokens or modules that the method adds: what these cost by themselves is
/// not in the aim.
fn own_step(report: &Report, name: &str) -> Option<f64> {
    ratio(report, Section::Train, name, "56 px, batch 32, beside its own", None)
}

/// Figures of one line, by what it grows with.
pub fn line<'a>(report: &'a Report, section: Section, name: &str, what: &str) -> Vec<&'a Figure> {
    let of_line = |figure: &&Figure| {
        (figure.section, figure.name.as_str(), figure.what.as_str()) == (section, name, what)
            && figure.x.is_some()
    };
    let mut line: Vec<_> = report.figures.iter().filter(of_line).collect();
    line.sort_by(|a, b| a.x.unwrap_or(0.0).total_cmp(&b.x.unwrap_or(0.0)));
    line
}

/// The last of a line over the first; of a line to ten thousand, or of what there is of it.
fn growth(report: &Report, section: Section, name: &str, what: &str) -> Option<f64> {
    let line = line(report, section, name, what);
    let (first, last) = (line.first()?, line.last()?);
    (line.len() > 1).then(|| last.value.median / first.value.median)
}

fn memory(report: &Report, clients: f64) -> Option<f64> {
    Some(report.find(Section::Memory, "bias", "worker by clients", Some(clients))?.value.median)
}

fn startup(report: &Report, what: &str) -> Option<f64> {
    value(report, Section::Startup, "fedpeft simulate", what)
}

const TARGETS: &[Target] = &[
    Target { what: "training step, `head`", most: 1.05, unit: "x forward", found: |r| step(r, "head") },
    Target { what: "training step, `bias`", most: 2.1, unit: "x forward", found: |r| step(r, "bias") },
    Target {
        what: "training step, `bias`, packed weights",
        most: 2.1,
        unit: "x forward",
        found: |r| step(r, "bias, packed weights"),
    },
    Target { what: "training step, LoRA q, v", most: 2.1, unit: "x forward", found: |r| step(r, "lora") },
    Target {
        what: "training step, `prompt`",
        most: 2.3,
        unit: "x its forward",
        found: |r| own_step(r, "prompt"),
    },
    Target {
        what: "training step, `adapter`",
        most: 2.3,
        unit: "x its forward",
        found: |r| own_step(r, "adapter"),
    },
    Target { what: "training step, `full`", most: 3.1, unit: "x forward", found: |r| step(r, "full") },
    Target {
        what: "memory of all processes, ten clients, `bias`",
        most: 1228.8,
        unit: "MiB",
        found: |r| value(r, Section::Runs, "bias", "memory of all processes"),
    },
    Target {
        what: "launch to first aggregated round beyond training",
        most: 3.0,
        unit: "s",
        found: |r| startup(r, "launch to first aggregated round, without training"),
    },
    Target {
        what: "launch to first training step, warm cache",
        most: 3.0,
        unit: "s",
        found: |r| startup(r, "launch to first training step"),
    },
    Target {
        what: "worker with ten clients over one with one",
        most: 1.6,
        unit: "x",
        found: |r| Some(memory(r, 10.0)? / memory(r, 1.0)?),
    },
    Target {
        what: "worker that trains `bias` at batch 32",
        most: 2.5,
        unit: "x backbone",
        found: |r| ratio(r, Section::Memory, "bias", "worker by clients", Some(1.0)),
    },
    Target {
        what: "adding an update of 88 MB to the sum, one of four at once",
        most: 2.0,
        unit: "x memcpy",
        found: |r| ratio(r, Section::Accumulator, "add, four at once", "one update", Some(88e6)),
    },
    Target {
        what: "aggregator's memory, most clients over ten",
        most: 1.1,
        unit: "x",
        found: |r| growth(r, Section::Rounds, "bias", "aggregator"),
    },
    Target {
        what: "round of 10,000 clients, `bias`",
        most: 3.0,
        unit: "x raw publishing",
        found: |r| ratio(r, Section::Rounds, "bias", "round", Some(10_000.0)),
    },
    Target {
        what: "round outside of training, ten clients, `bias`",
        most: 50.0,
        unit: "ms",
        found: |r| value(r, Section::Runs, "bias", "overhead of a round"),
    },
    Target {
        what: "building artifacts of a ViT-S, `full`",
        most: 5.0,
        unit: "s",
        found: |r| value(r, Section::Artifacts, "full", "ViT-S, 56 px"),
    },
    Target {
        what: "largest program",
        most: 20.0,
        unit: "MB",
        found: |r| {
            let programs = r.figures.iter().filter(|figure| figure.section == Section::Programs);
            programs.map(|figure| figure.value.median).reduce(f64::max)
        },
    },
];

/// Each aim, and whether it was reached.
pub fn targets(report: &Report) -> Table {
    let mut table = Table::new(&["what", "at most", "measured", ""]);
    for Target { what, most, unit, found } in TARGETS {
        let (measured, verdict) = match found(report) {
            Some(found) => (
                format!("{} {unit}", short(found)),
                if found <= *most { "reached" } else { "**not reached**" },
            ),
            None => ("not measured".into(), ""),
        };
        table.rows.push(vec![(*what).into(), format!("{} {unit}", short(*most)), measured, verdict.into()]);
    }
    table
}

/// What peers took on a machine of this kind: head, bias, LoRA, full.
struct Peer {
    what: &'static str,
    took: [&'static str; 4],
    ours: fn(&Report, &str) -> Option<Spread>,
}

const PEERS: &[Peer] = &[
    Peer {
        what: "PyTorch forward + backward, ms/image (its forward: 3.03)",
        took: ["3.1", "7.0", "7.2", "10.0"],
        ours: |r, method| Some(r.find(Section::Train, method, "56 px, batch 32", None)?.value),
    },
    Peer {
        what: "Flower simulation, s per round after the first",
        took: ["7.4", "15.1", "16.2", "25.0"],
        ours: |r, method| Some(r.find(Section::Runs, method, "round", None)?.value),
    },
    Peer {
        what: "Flower deployment, 2 nodes: s per round outside training",
        took: ["9.5", "13 to 16", "13.5", "30 to 35"],
        ours: |r, method| Some(r.find(Section::Runs, method, "overhead of a round", None)?.value.times(1e-3)),
    },
    Peer {
        what: "peak memory of all processes, MiB (simulation)",
        took: ["3597", "3933", "4104", "8024"],
        ours: |r, method| Some(r.find(Section::Runs, method, "memory of all processes", None)?.value),
    },
    Peer {
        what: "launch to first round aggregated, s",
        took: ["28", "34", "35", "44"],
        ours: |r, method| {
            Some(r.find(Section::Runs, method, "launch to first aggregated round", None)?.value)
        },
    },
    Peer {
        what: "wire bytes up per client and round, kB",
        took: ["37 to 40", "653 to 671", "800 to 842", "89,200"],
        ours: |r, method| Some(r.find(Section::Runs, method, "bytes up per client and round", None)?.value),
    },
];

/// What peers took, and below it what we take.
pub fn peers(report: &Report) -> Table {
    let mut table = Table::new(&["", "head", "bias", "LoRA r8 q, v", "full"]);
    for Peer { what, took, ours } in PEERS {
        let row = [*what].into_iter().chain(*took).map(str::to_owned);
        table.rows.push(row.collect());
        let measured = ["head", "bias", "lora", "full"].map(|method| {
            ours(report, method)
                .map_or_else(|| "not measured".to_owned(), |spread| format!("**{}**", short(spread.median)))
        });
        table.rows.push([String::from("FedPEFT")].into_iter().chain(measured).collect());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_reached_or_not_and_what_is_missing_is_said() {
        let step = |name: &str, ratio: f64| {
            let figure =
                Figure::new(Section::Train, name, "56 px, batch 32").is(Spread::one(ratio), "ms/image");
            figure.beside("forward", Spread::one(1.0))
        };
        let memory = |clients: f64, mib: f64| {
            Figure::new(Section::Rounds, "bias", "aggregator").at(clients).is(Spread::one(mib), "MiB")
        };
        let figures = vec![step("head", 1.01), step("bias", 2.2), memory(10.0, 20.0), memory(1000.0, 21.0)];
        let table = targets(&Report { figures, ..Report::default() });
        let row = |what: &str| table.rows.iter().find(|row| row[0].contains(what)).unwrap();
        assert_eq!(row("`head`")[2..], ["1.01 x forward", "reached"]);
        assert_eq!(row("step, `bias`")[2..], ["2.20 x forward", "**not reached**"]);
        assert_eq!(row("over ten")[2..], ["1.05 x", "reached"]);
        assert_eq!(row("`full`")[2..], ["not measured", ""]);
        assert_eq!(peers(&Report::default()).rows.len(), 2 * PEERS.len());
    }
}
