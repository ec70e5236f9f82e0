//! `fedpeft privacy`: what rounds of clipped and noised updates cost, and how much noise a budget asks for.

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use fedpeft_privacy::{Accountant, Mechanism, Sampling, epsilon, noise_multiplier};
use serde::Serialize;

use crate::output::{self, Output};

/// What to compute.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the epsilon that rounds with a noise multiplier cost.
    #[command(after_help = "\
Examples:
  fedpeft privacy spent --clients 64 --cohort 8 --rounds 50 --noise-multiplier 1.1 --delta 1e-3
  fedpeft privacy spent --rate 0.01 --rounds 1000 --noise-multiplier 0.8 --delta 1e-5 --json")]
    Spent {
        #[command(flatten)]
        rounds: Rounds,
        /// Standard deviation of the noise on the sum of updates, as a multiple of the clipping norm.
        #[arg(long, value_name = "Z")]
        noise_multiplier: f64,
        #[command(flatten)]
        output: Output,
    },
    /// Print the least noise multiplier that keeps rounds within a budget.
    #[command(after_help = "\
Examples:
  fedpeft privacy noise --clients 64 --cohort 8 --rounds 50 --epsilon 5 --delta 1e-3
  fedpeft privacy noise --rate 0.125 --rounds 50 --epsilon 5 --delta 1e-3 --sampling fixed-size")]
    Noise {
        #[command(flatten)]
        rounds: Rounds,
        /// Most that all rounds together may cost.
        #[arg(long, value_name = "E")]
        epsilon: f64,
        #[command(flatten)]
        output: Output,
    },
}

/// What is released.
#[derive(Debug, Args)]
pub struct Rounds {
    /// Share of the clients (or examples) that take part in a round.
    #[arg(long, value_name = "SHARE", required_unless_present = "cohort", conflicts_with = "cohort")]
    rate: Option<f64>,
    /// All clients; with --cohort instead of --rate.
    #[arg(long, value_name = "N", requires = "cohort")]
    clients: Option<u32>,
    /// Clients of a round, in the mean where they are drawn one by one.
    #[arg(long, value_name = "M", requires = "clients")]
    cohort: Option<u32>,
    /// Rounds (or steps).
    #[arg(long, value_name = "R")]
    rounds: u64,
    /// Probability that the promise of epsilon does not hold: well below one over the number of clients.
    #[arg(long, value_name = "D")]
    delta: f64,
    /// How those that take part are drawn.
    #[arg(long, value_enum, default_value = "poisson")]
    sampling: Drawn,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Drawn {
    /// Each independently, as DP-SGD and DP-FedAvg are analysed; neighbours have one client more or fewer
    Poisson,
    /// Always as many, without replacement; neighbours have one client replaced by another
    FixedSize,
}

impl Rounds {
    fn sampling(&self) -> Sampling {
        let of_cohort = || f64::from(self.cohort.unwrap_or(0)) / f64::from(self.clients.unwrap_or(1));
        let rate = self.rate.unwrap_or_else(of_cohort);
        match self.sampling {
            Drawn::Poisson => Sampling::Poisson { rate },
            Drawn::FixedSize => Sampling::FixedSize { rate },
        }
    }
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Row {
    accountant: String,
    rate: f64,
    rounds: u64,
    noise_multiplier: f64,
    epsilon: f64,
    delta: f64,
}

/// Runs one of them.
pub fn run(command: Command) -> Result<()> {
    let (rounds, output) = match &command {
        Command::Spent { rounds, output, .. } | Command::Noise { rounds, output, .. } => (rounds, *output),
    };
    let (sampling, delta) = (rounds.sampling(), rounds.delta);
    let row = |accountant: &Accountant| -> Result<Row> {
        let noise = match command {
            Command::Spent { noise_multiplier, .. } => noise_multiplier,
            Command::Noise { epsilon, .. } => {
                noise_multiplier(*accountant, sampling, rounds.rounds, epsilon, delta)?
            }
        };
        let spent = epsilon(*accountant, &[(Mechanism::new(sampling, noise)?, rounds.rounds)], delta)?;
        Ok(Row {
            accountant: accountant.to_string(),
            rate: sampling.rate(),
            rounds: rounds.rounds,
            noise_multiplier: noise,
            epsilon: spent,
            delta,
        })
    };
    // The tightest first.
    let rows = [Accountant::Prv, Accountant::Rdp].iter().map(row).collect::<Result<Vec<_>>>()?;
    output.show(&rows, |rows| human(rows))
}

fn human(rows: &[Row]) -> String {
    let header = ["accountant", "rate", "rounds", "noise multiplier", "epsilon", "delta"];
    let mut text = output::table(&header, 1..header.len());
    for row in rows {
        text.add_row(vec![
            row.accountant.clone(),
            format!("{:.4}", row.rate),
            row.rounds.to_string(),
            format!("{:.4}", row.noise_multiplier),
            format!("{:.4}", row.epsilon),
            row.delta.to_string(),
        ]);
    }
    text.trim_fmt()
}
