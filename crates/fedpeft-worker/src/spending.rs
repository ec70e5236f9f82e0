//! What training with DP-SGD has cost a client's examples, counted by the client itself and kept on disk.
//!
//! Steps are counted before they are taken, a block at a time, and each time they are taken: a crash, a lost
//! checkpoint or a task that comes twice costs budget and never privacy. There is one file for each client and run, in
//! the folder `privacy` beside the checkpoints; one that cannot be read ends the training, for nobody knows any more what
//! was spent. Processes that share the folder add to the same account: what is counted is added to what the file says by
//! then, under a lock.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use fedpeft_privacy::{Accountant, Mechanism, PrivacyError, Sampling};
use fedpeft_protocol::{
    ClientId, Digest, RunId,
    run::{DpSgdSpec, ExampleSampling, TrainingSpec},
};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// The file in the folder of accounts that whoever changes one holds locked.
const LOCK: &str = "lock";

/// Blocks that the steps of a training are counted in.
const BLOCKS: u64 = 8;

/// Why a client does not train, or not on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpendingError {
    #[error("{path}: {source}; what this client has spent is not known, so it does not train", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "this round would bring the client's epsilon to {would:.3} at delta {delta}, above its budget of {budget}: add \
         noise, take fewer steps or rounds, or raise training.dp_sgd.epsilon"
    )]
    Budget { would: f64, delta: f64, budget: f64 },
    #[error(transparent)]
    Accounting(#[from] PrivacyError),
}

/// Releases of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Releases {
    sampling: ExampleSampling,
    /// Share of the examples in one release, in the mean.
    rate: f64,
    noise_multiplier: f64,
    count: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    client: ClientId,
    run: RunId,
    releases: Vec<Releases>,
}

/// The account of one client in one run, open for one training.
#[derive(Debug)]
pub(crate) struct Spending {
    path: PathBuf,
    record: Record,
    spec: DpSgdSpec,
    /// What this training's releases are, none of them yet.
    kind: Releases,
    /// Steps of one release: one, or an epoch where each example is in one step of it.
    unit: u64,
    /// Steps that are counted; none before the first.
    counted: Option<u64>,
}

impl Spending {
    /// Opens the account for a training on so many examples. `folder` is that of the worker's state.
    pub fn open(
        folder: &Path,
        (client, run): (&ClientId, &RunId),
        training: &TrainingSpec,
        spec: DpSgdSpec,
        examples: usize,
    ) -> Result<Self, SpendingError> {
        let name = Digest::of(format!("fedpeft privacy {client}\n{run}"));
        let path = folder.join("privacy").join(format!("{name}.json"));
        let record =
            Record { version: VERSION, client: client.clone(), run: run.clone(), releases: Vec::new() };
        let examples = examples.max(1);
        let batch = (training.batch_size.max(1) as usize).min(examples);
        let (sampling, noise_multiplier) = (spec.sampling, spec.noise_multiplier);
        let (rate, unit) = match sampling {
            ExampleSampling::Poisson => (batch as f64 / examples as f64, 1),
            ExampleSampling::Shuffle => (1.0, examples.div_ceil(batch) as u64),
        };
        let kind = Releases { sampling, rate, noise_multiplier, count: 0 };
        let mut spending = Self { path, record, spec, kind, unit, counted: None };
        spending.read().map_err(|source| spending.unusable(source))?;
        Ok(spending)
    }

    /// Counts what is done next, before it is: called before every step with the steps done and those in all, and after
    /// the last.
    ///
    /// # Errors
    /// Before the first step, and whenever another process has counted in the meantime, that the rest of the training does
    /// not fit the budget; at any, that it cannot be counted.
    pub fn before(&mut self, step: u64, planned: u64) -> Result<(), SpendingError> {
        if step >= planned || self.counted.is_some_and(|counted| step < counted) {
            return Ok(());
        }
        let _lock = self.lock().map_err(|source| self.unusable(source))?;
        let is_news = self.read().map_err(|source| self.unusable(source))?;
        if is_news || self.counted.is_none() {
            let would = self.with(self.releases(step, planned)).epsilon(self.spec.delta)?;
            match self.spec.epsilon {
                Some(budget) if would > budget => {
                    return Err(SpendingError::Budget { would, delta: self.spec.delta, budget });
                }
                _ => {}
            }
        }
        let block = planned.div_ceil(BLOCKS).max(1);
        let until = (step + block).next_multiple_of(self.unit).min(planned);
        let record = self.with(self.releases(step, until));
        self.write(&record).map_err(|source| self.unusable(source))?;
        (self.record, self.counted) = (record, Some(until));
        Ok(())
    }

    /// What has been counted costs, at the delta of the specification.
    pub fn epsilon(&self) -> Result<f64, SpendingError> {
        Ok(self.record.epsilon(self.spec.delta)?)
    }

    /// Releases in the steps `from..to`.
    fn releases(&self, from: u64, to: u64) -> u64 {
        to.div_ceil(self.unit) - from / self.unit
    }

    fn with(&self, count: u64) -> Record {
        let mut releases = self.record.releases.clone();
        let same = |other: &&mut Releases| Releases { count: 0, ..**other } == self.kind;
        match releases.iter_mut().find(same) {
            Some(known) => known.count += count,
            None => releases.push(Releases { count, ..self.kind }),
        }
        let Record { version, client, run, .. } = &self.record;
        Record { version: *version, client: client.clone(), run: run.clone(), releases }
    }

    fn unusable(&self, source: io::Error) -> SpendingError {
        SpendingError::File { path: self.path.clone(), source }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Keeps others from changing an account of this folder for as long as the file is open.
    fn lock(&self) -> io::Result<fs::File> {
        fs::create_dir_all(self.folder())?;
        let lock = fs::File::create(self.folder().join(LOCK))?;
        lock.lock()?;
        Ok(lock)
    }

    /// Reads what the file says, if there is one; whether that is something else than what was known.
    fn read(&mut self) -> io::Result<bool> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let found = serde_json::from_slice::<Record>(&bytes)?;
        let Record { version, client, run, releases } = &self.record;
        if (found.version, &found.client, &found.run) != (*version, client, run) {
            return Err(io::Error::other("it is of another account"));
        }
        let is_news = found.releases != *releases;
        self.record = found;
        Ok(is_news)
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let folder = self.folder();
        let mut temporary = tempfile::Builder::new().prefix(".part-").tempfile_in(folder)?;
        temporary.write_all(&serde_json::to_vec(record)?)?;
        temporary.as_file().sync_all()?;
        temporary.persist(&self.path).map_err(|error| error.error)?;
        // The new name is durable once the folder is.
        fs::File::open(folder)?.sync_all()
    }
}

impl Record {
    /// An upper bound of what all releases together cost.
    fn epsilon(&self, delta: f64) -> Result<f64, PrivacyError> {
        let mechanism = |releases: &Releases| {
            let sampling = match releases.sampling {
                ExampleSampling::Poisson => Sampling::Poisson { rate: releases.rate },
                ExampleSampling::Shuffle => Sampling::FixedSize { rate: releases.rate },
            };
            Ok((Mechanism::new(sampling, releases.noise_multiplier)?, releases.count))
        };
        let all = self.releases.iter().map(mechanism).collect::<Result<Vec<_>, PrivacyError>>()?;
        // The tighter accountant knows samples drawn one by one, and not every noise.
        fedpeft_privacy::epsilon(Accountant::Prv, &all, delta)
            .or_else(|_| fedpeft_privacy::epsilon(Accountant::Rdp, &all, delta))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(sampling: ExampleSampling, epsilon: Option<f64>) -> DpSgdSpec {
        DpSgdSpec { clip_norm: 1.0, noise_multiplier: 1.1, sampling, delta: 1e-5, epsilon }
    }

    fn open(folder: &Path, client: &str, spec: DpSgdSpec) -> Result<Spending, SpendingError> {
        let training = TrainingSpec { batch_size: 10, local_epochs: 2, ..Default::default() };
        let (client, run) = (ClientId::new(client).unwrap(), RunId::new("r").unwrap());
        Spending::open(folder, (&client, &run), &training, spec, 100)
    }

    fn counted(folder: &Path, client: &str, sampling: ExampleSampling) -> u64 {
        let spending = open(folder, client, spec(sampling, None)).unwrap();
        spending.record.releases.iter().map(|releases| releases.count).sum()
    }

    fn expected(sampling: Sampling, count: u64, accountant: Accountant) -> f64 {
        let mechanism = Mechanism::new(sampling, 1.1).unwrap();
        fedpeft_privacy::epsilon(accountant, &[(mechanism, count)], 1e-5).unwrap()
    }

    #[test]
    fn every_step_is_counted_before_it_is_taken_and_rounds_add_up() {
        let folder = tempfile::tempdir().unwrap();
        let poisson = ExampleSampling::Poisson;
        for round in 1..=3 {
            let mut spending = open(folder.path(), "a", spec(poisson, None)).unwrap();
            for step in 0..=20 {
                spending.before(step, 20).unwrap();
                let on_disk = counted(folder.path(), "a", poisson);
                assert!(on_disk > 20 * (round - 1) + step.min(19) && on_disk <= 20 * round);
            }
            let want = expected(Sampling::Poisson { rate: 0.1 }, 20 * round, Accountant::Prv);
            assert!((spending.epsilon().unwrap() / want - 1.0).abs() < 1e-9);
        }
        assert_eq!(counted(folder.path(), "a", poisson), 60);
        assert_eq!(counted(folder.path(), "b", poisson), 0, "another client's account");
    }

    #[test]
    fn what_is_taken_again_counts_again() {
        let folder = tempfile::tempdir().unwrap();
        let poisson = ExampleSampling::Poisson;
        let mut first = open(folder.path(), "a", spec(poisson, None)).unwrap();
        (0..5).for_each(|step| first.before(step, 20).unwrap());
        // Killed after step 5 of a block up to 6; a checkpoint had step 4.
        let mut second = open(folder.path(), "a", spec(poisson, None)).unwrap();
        (4..=20).for_each(|step| second.before(step, 20).unwrap());
        assert_eq!(counted(folder.path(), "a", poisson), 6 + 16);
        // A result that is only sent again costs nothing.
        let mut third = open(folder.path(), "a", spec(poisson, None)).unwrap();
        third.before(20, 20).unwrap();
        assert_eq!(counted(folder.path(), "a", poisson), 6 + 16);
    }

    #[test]
    fn processes_that_share_a_folder_share_the_account_and_its_budget() {
        let folder = tempfile::tempdir().unwrap();
        let poisson = ExampleSampling::Poisson;
        let mut both = [0, 1].map(|_| open(folder.path(), "a", spec(poisson, None)).unwrap());
        for step in 0..=20 {
            both.iter_mut().for_each(|spending| spending.before(step, 20).unwrap());
        }
        assert_eq!(counted(folder.path(), "a", poisson), 40);

        // Room for one of them, and for what the other counts before it finds that out.
        let limit = expected(Sampling::Poisson { rate: 0.1 }, 64, Accountant::Prv) * 1.0001;
        let mut both = [0, 1].map(|_| open(folder.path(), "a", spec(poisson, Some(limit))).unwrap());
        both.iter_mut().for_each(|spending| spending.before(0, 20).unwrap());
        both[0].before(3, 20).unwrap();
        let error = both[1].before(3, 20).unwrap_err();
        assert!(matches!(error, SpendingError::Budget { .. }), "{error}");
        (4..=20).for_each(|step| both[0].before(step, 20).unwrap());
        assert_eq!(counted(folder.path(), "a", poisson), 63);
    }

    #[test]
    fn shuffled_epochs_cost_one_release_without_amplification() {
        let folder = tempfile::tempdir().unwrap();
        let shuffle = ExampleSampling::Shuffle;
        let mut spending = open(folder.path(), "a", spec(shuffle, None)).unwrap();
        (0..=20).for_each(|step| spending.before(step, 20).unwrap());
        assert_eq!(counted(folder.path(), "a", shuffle), 2);
        let want = expected(Sampling::FixedSize { rate: 1.0 }, 2, Accountant::Prv);
        assert!((spending.epsilon().unwrap() / want - 1.0).abs() < 1e-9);
        let poisson = expected(Sampling::Poisson { rate: 0.1 }, 20, Accountant::Prv);
        assert!(want > poisson, "{want} {poisson}");
    }

    #[test]
    fn a_budget_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let two_rounds = expected(Sampling::Poisson { rate: 0.1 }, 40, Accountant::Prv);
        let spec = spec(ExampleSampling::Poisson, Some(two_rounds * 1.0001));
        for _ in 0..2 {
            let mut spending = open(folder.path(), "a", spec).unwrap();
            (0..=20).for_each(|step| spending.before(step, 20).unwrap());
        }
        let mut spending = open(folder.path(), "a", spec).unwrap();
        let error = spending.before(0, 20).unwrap_err();
        assert!(matches!(error, SpendingError::Budget { .. }));
        assert!(error.to_string().contains("training.dp_sgd.epsilon"), "{error}");
        assert_eq!(counted(folder.path(), "a", ExampleSampling::Poisson), 40, "a refusal costs nothing");
    }

    #[test]
    fn an_account_that_cannot_be_read_is_no_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut spending = open(folder.path(), "a", spec(ExampleSampling::Poisson, None)).unwrap();
        spending.before(0, 20).unwrap();
        fs::write(&spending.path, b"{").unwrap();
        let error = open(folder.path(), "a", spec(ExampleSampling::Poisson, None)).unwrap_err();
        assert!(error.to_string().contains("does not train"), "{error}");
    }
}
