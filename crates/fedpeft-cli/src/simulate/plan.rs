//! Which process hosts which clients.

use std::num::NonZero;

use crate::config::{Config, EvaluateOn};

/// What names of clients begin with.
pub const PREFIX: &str = "client-";
/// Name of the client that evaluates, and of its process.
pub const EVALUATOR: &str = "evaluator";
/// More workers than this are started only on request: each holds a copy of the backbone.
const MOST_WORKERS: u32 = 8;

/// One worker process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Name of the process.
    pub name: String,
    /// First client it hosts.
    pub first: u32,
    /// How many.
    pub clients: u32,
}

/// All workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Those that train.
    pub workers: Vec<Worker>,
    /// Threads of each.
    pub threads: u32,
    /// What the evaluator evaluates on; none where the run is never evaluated, or by its clients.
    pub evaluator: Option<EvaluateOn>,
    /// Threads of the evaluator: it works while the others wait.
    pub evaluator_threads: u32,
}

impl Plan {
    /// Spreads the clients of `config` over the cores of this machine.
    pub fn new(config: &Config) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self::on(config, u32::try_from(cores).unwrap_or(u32::MAX))
    }

    fn on(config: &Config, cores: u32) -> Self {
        let clients = config.data.clients;
        let count = config.simulate.workers.unwrap_or(cores.min(MOST_WORKERS)).min(clients).max(1);
        let threads = config.simulate.threads.unwrap_or((cores / count).max(1));
        let bound = |index: u32| (u64::from(clients) * u64::from(index) / u64::from(count)) as u32;
        let worker = |index: u32| Worker {
            name: format!("worker-{}", index + 1),
            first: bound(index),
            clients: bound(index + 1) - bound(index),
        };
        Self {
            workers: (0..count).map(worker).collect(),
            threads,
            evaluator: (config.run.evaluation.every > 0 && !config.run.is_personal())
                .then_some(config.simulate.evaluate_on),
            evaluator_threads: threads.saturating_mul(count).min(cores.max(threads)),
        }
    }

    /// Names of all clients that must be present before the run begins.
    pub fn clients(&self) -> Vec<String> {
        let trainers = self.workers.iter().flat_map(Worker::names);
        trainers.chain(self.evaluator.map(|_| EVALUATOR.to_owned())).collect()
    }
}

impl Worker {
    /// Names of its clients.
    pub fn names(&self) -> impl Iterator<Item = String> + use<> {
        (self.first..self.first + self.clients).map(|index| format!("{PREFIX}{index:03}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    fn plan(edits: &str, cores: u32) -> Plan {
        let text = format!("[run]\nrounds = 1\ncohort = 1\n[model]\nname = 'm'\n{edits}");
        Plan::on(&Document::parse("run.toml", &text).unwrap().config(None).unwrap(), cores)
    }

    #[test]
    fn every_client_has_one_host() {
        for (clients, workers) in [(10, 3), (4, 4), (1, 5), (7, 2)] {
            let plan = plan(&format!("[data]\nclients = {clients}\n[simulate]\nworkers = {workers}"), 2);
            let names: Vec<String> = plan.workers.iter().flat_map(Worker::names).collect();
            let expected: Vec<String> = (0..clients).map(|index| format!("client-{index:03}")).collect();
            assert_eq!(names, expected);
            assert!(plan.workers.iter().all(|worker| worker.clients > 0));
        }
    }

    #[test]
    fn cores_are_shared_out() {
        let two = plan("", 2);
        assert_eq!((two.workers.len(), two.threads, two.evaluator_threads), (2, 1, 2));
        let many = plan("", 64);
        assert_eq!((many.workers.len(), many.threads, many.evaluator_threads), (8, 8, 64));
        assert_eq!(many.clients().last().map(String::as_str), Some(EVALUATOR));
        let personal = plan("[data]\nclients = 2\n[run.training]\nlocal = ['head.*']", 2);
        assert_eq!(personal.clients(), ["client-000", "client-001"]);
    }
}
