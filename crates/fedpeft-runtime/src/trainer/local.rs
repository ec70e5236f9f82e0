//! Local training: what one client does in one round.

#[cfg(test)]
mod tests;

use std::{num::NonZeroUsize, time::Instant};

use fedpeft_artifacts::optimizer::gradient;
use fedpeft_protocol::{
    Round,
    run::{OptimizerSpec, TrainingSpec},
};

use super::{Snapshot, Standing, Stepped, Trainer, mean};
use crate::{
    Examples, Optimizer, OrderSeed, RuntimeError, Schedule,
    memory::Residence,
    optimizer::{Bound, Form, GraphOptimizer, HostOptimizer, Sessions, transforms},
    private::{Batches, Draws, Private},
    session,
};

/// One client's part in one round.
#[derive(Debug, Clone, Copy)]
pub struct LocalTraining<'a> {
    /// How to train.
    pub spec: &'a TrainingSpec,
    /// Which client and round this is: they make the order of its examples.
    pub seed: OrderSeed<'a>,
    /// Rounds of the run, for learning rates that depend on how far it is.
    pub rounds: Round,
    /// What is added to the gradient of every step, in layout order: SCAFFOLD's control variates.
    pub correction: Option<&'a [f32]>,
}

/// What training came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trained {
    /// Examples of the client.
    pub examples: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Mean loss over the last local epoch.
    pub loss: f64,
    /// Seconds spent.
    pub seconds: f64,
    /// Sum of the learning rates of all steps.
    pub learning_rates: f64,
}

impl Trainer {
    /// Trains on every example once per local epoch. `proceed` is asked before every step and stops training by
    /// returning `false`.
    pub fn train(
        &mut self,
        training: LocalTraining<'_>,
        examples: &dyn Examples,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<Trained, RuntimeError> {
        self.train_from(training, None, examples, &mut |_| Ok(proceed()))
    }

    /// Trains on from `snapshot`, which the same training took: same specification, seed, examples and global
    /// adapter, the last of which this trainer holds when the call begins. `between` is called before every step,
    /// and after the last; it may take snapshots, and stops training by returning `false`.
    ///
    /// # Errors
    /// [`RuntimeError::Snapshot`] where the snapshot is not of such a training, and those of training.
    pub fn train_from(
        &mut self,
        training: LocalTraining<'_>,
        snapshot: Option<&Snapshot>,
        examples: &dyn Examples,
        between: &mut dyn FnMut(&Standing<'_>) -> Result<bool, RuntimeError>,
    ) -> Result<Trained, RuntimeError> {
        let draws = training.spec.dp_sgd.map(|_| Draws::from_entropy()).transpose()?;
        self.train_drawing(training, draws, snapshot, examples, between)
    }

    /// [`Self::train_from`] with these draws, where the training is private.
    fn train_drawing(
        &mut self,
        training: LocalTraining<'_>,
        draws: Option<Draws>,
        snapshot: Option<&Snapshot>,
        examples: &dyn Examples,
        between: &mut dyn FnMut(&Standing<'_>) -> Result<bool, RuntimeError>,
    ) -> Result<Trained, RuntimeError> {
        let start = Instant::now();
        let LocalTraining { spec, seed, rounds, correction } = training;
        let count = examples.len();
        if count == 0 {
            return Err(RuntimeError::NoExamples);
        }
        let batch = (spec.batch_size.max(1) as usize).min(count);
        let mut batches = Batches::new(seed, count, batch);
        let mut private =
            draws.zip(spec.dp_sgd).map(|(draws, dp_sgd)| Private::new(draws, dp_sgd, spec, batch));
        let per_epoch = batches.per_epoch();
        let planned = u64::from(spec.local_epochs).saturating_mul(per_epoch);
        let schedule = Schedule::new(spec, planned, seed.round, rounds);
        let mut optimizer = self.corrected_optimizer(spec, correction)?;
        let (mut steps, mut loss, mut weight, mut earlier) = (0, 0.0, 0.0, 0.0);
        if let Some(snapshot) = snapshot {
            self.restore(snapshot, planned, &mut optimizer)?;
            (steps, loss, weight) = (snapshot.steps, snapshot.loss, snapshot.weight);
            earlier = snapshot.seconds;
        }
        let mut ask = |trainer: &Self, optimizer: &Optimizer, steps, loss, weight| {
            let seconds = earlier + start.elapsed().as_secs_f64();
            let standing = Standing { trainer, optimizer, steps, planned, loss, weight, seconds };
            Ok::<_, RuntimeError>((between(&standing)?, seconds))
        };
        while steps < planned {
            if steps % per_epoch == 0 {
                (loss, weight) = (0.0, 0.0);
            }
            if !ask(self, &optimizer, steps, loss, weight)?.0 {
                return Err(RuntimeError::Stopped);
            }
            optimizer.set_learning_rate(schedule.learning_rate(steps));
            self.reseed(seed.dropout(steps));
            let indices = batches.at(steps, private.as_mut());
            let stepped = match &mut private {
                Some(private) => self.private_step(&mut optimizer, private, examples, indices)?,
                None => self.train_step(&mut optimizer, examples, indices)?,
            };
            steps += 1;
            if !stepped.loss.is_finite() {
                return Err(RuntimeError::Diverged { step: steps, loss: stepped.loss });
            }
            loss += f64::from(stepped.loss) * stepped.weight;
            weight += stepped.weight;
        }
        if let Some(Private { seen, clipped, .. }) = private {
            tracing::debug!(client = seed.client, seen, clipped, "gradients of examples");
        }
        let (_, seconds) = ask(self, &optimizer, steps, loss, weight)?;
        let learning_rates = (0..planned).map(|step| schedule.learning_rate(step)).sum();
        Ok(Trained { examples: count as u64, steps, loss: mean(loss, weight), seconds, learning_rates })
    }

    fn restore(
        &mut self,
        snapshot: &Snapshot,
        planned: u64,
        optimizer: &mut Optimizer,
    ) -> Result<(), RuntimeError> {
        let Snapshot { steps, adapter, optimizer: state, .. } = snapshot;
        if *steps > planned {
            return Err(RuntimeError::Snapshot(format!("it is at step {steps} of {planned}")));
        }
        self.set_adapter(adapter).map_err(|error| RuntimeError::Snapshot(error.to_string()))?;
        // After the last step nobody asks for it, and whoever keeps a result need not keep it.
        if *steps == planned { Ok(()) } else { optimizer.set_state(&self.adapter, state) }
    }

    /// One step on the examples at `indices`. A loss that is no number leaves the adapter as it is.
    pub fn train_step(
        &mut self,
        optimizer: &mut Optimizer,
        examples: &dyn Examples,
        indices: &[usize],
    ) -> Result<Stepped, RuntimeError> {
        if indices.is_empty() {
            return Err(RuntimeError::NoExamples);
        }
        optimizer.begin();
        let (mut loss, mut correct, mut count, mut weight) = (0.0, 0, 0, 0.0);
        let mut parts = indices.chunks(optimizer.micro_batch()).zip(0..).peekable();
        while let Some((part, number)) = parts.next() {
            let measured = self.gradients_dropping(part_seed(self.dropout, number), examples, part)?;
            if !measured.loss.is_finite() {
                return Ok(measured);
            }
            loss += f64::from(measured.loss) * measured.weight;
            correct += measured.correct;
            count += measured.count;
            weight += measured.weight;
            let Some(training) = &self.training else {
                return Err(RuntimeError::Run("the training session is gone".to_owned()));
            };
            if parts.peek().is_some() {
                optimizer.accumulate(training.gradients(), measured.weight)?;
            } else {
                optimizer.step(&mut self.adapter, training.gradients(), measured.weight)?;
            }
        }
        Ok(Stepped { loss: mean(loss, weight) as f32, correct, count, weight })
    }

    /// An optimizer for training as `training` says, at a constant learning rate until
    /// [`Optimizer::set_learning_rate`]. Its state is zero, and its proximal term pulls to the present adapter.
    pub fn optimizer(&mut self, training: &TrainingSpec) -> Result<Optimizer, RuntimeError> {
        self.corrected_optimizer(training, None)
    }

    /// [`Self::optimizer`], which adds `correction` to every gradient.
    fn corrected_optimizer(
        &mut self,
        training: &TrainingSpec,
        correction: Option<&[f32]>,
    ) -> Result<Optimizer, RuntimeError> {
        if let Some(values) = correction
            && values.len() != self.layout().values()
        {
            return Err(RuntimeError::Adapter { got: values.len(), expected: self.layout().values() });
        }
        self.usual = Some(training.batch_size.div_ceil(training.accumulate.max(1)).max(1) as usize);
        // Sums of clipped gradients reach the optimizer whole.
        let whole = training.dp_sgd.map(|_| TrainingSpec { accumulate: 1, ..training.clone() });
        let training = whole.as_ref().unwrap_or(training);
        let mut anchor = Vec::new();
        if training.proximal_mu > 0.0 {
            self.adapter.read(&mut anchor)?;
        }
        let form = match self.memory.residence {
            Residence::Host => {
                let threads = match self.options.threads {
                    0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
                    threads => threads,
                };
                let layout = self.layout();
                Form::Host(Box::new(HostOptimizer::new(training, anchor, correction, layout, threads)?))
            }
            Residence::Device => Form::Graph(Box::new(self.graph_optimizer(training, &anchor, correction)?)),
        };
        Ok(Optimizer::new(form, training))
    }

    fn graph_optimizer(
        &mut self,
        spec: &TrainingSpec,
        anchor: &[f32],
        correction: Option<&[f32]>,
    ) -> Result<GraphOptimizer, RuntimeError> {
        self.training(spec.dp_sgd.is_some())?;
        let Self { training: Some(training), adapter, memory, folder, .. } = self else {
            return Err(RuntimeError::Run("the training session is gone".to_owned()));
        };
        let files = &folder.manifest().files;
        let file = match spec.optimizer {
            OptimizerSpec::Sgd { .. } => &files.optimizer_sgd,
            OptimizerSpec::Adamw { .. } => &files.optimizer_adamw,
        };
        let (runtime, device, options) = (&self.runtime, self.device, &self.options);
        let transforms = transforms(spec, correction.is_some());
        let step = session::open_edited(runtime, folder, file, device, options, false, |model| {
            gradient::keep(model, transforms)
        })?;
        let accumulation = transforms.accumulate.then(|| {
            session::open_edited(runtime, folder, file, device, options, false, gradient::accumulation)
        });
        let sessions = Sessions { step, accumulation: accumulation.transpose()? };
        let bound = Bound {
            layout: &folder.manifest().adapter,
            adapter: adapter.sets_mut(),
            gradients: training.gradients(),
            anchor,
            correction,
            allocator: &memory.allocator,
        };
        GraphOptimizer::new(sessions, spec, bound)
    }
}

/// Seed of dropout for a micro-batch, counted from 0: all with the step's own would drop the same places.
pub(super) fn part_seed(seed: i64, number: i64) -> i64 {
    // Odd and large: the seeds of different steps and micro-batches do not meet.
    const STRIDE: i64 = 0x9E37_79B9_7F4B;
    seed.wrapping_add(number.wrapping_mul(STRIDE)) & i64::MAX
}
