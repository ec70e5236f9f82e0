//! Local training: what one client does in one round.

use std::{num::NonZeroUsize, time::Instant};

use fedpeft_artifacts::optimizer::gradient;
use fedpeft_protocol::{
    Round,
    run::{OptimizerSpec, TrainingSpec},
};

use super::{Stepped, Trainer};
use crate::{
    Examples, Optimizer, OrderSeed, RuntimeError, Schedule,
    graph::Residence,
    optimizer::{Bound, Form, GraphOptimizer, HostOptimizer, Sessions, transforms},
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
        let start = Instant::now();
        let LocalTraining { spec, seed, rounds } = training;
        let count = examples.len();
        if count == 0 {
            return Err(RuntimeError::NoExamples);
        }
        let batch = (spec.batch_size.max(1) as usize).min(count);
        let planned = u64::from(spec.local_epochs).saturating_mul(count.div_ceil(batch) as u64);
        let schedule = Schedule::new(spec, planned, seed.round, rounds);
        let mut optimizer = self.optimizer(spec)?;
        let (mut steps, mut loss, mut scored) = (0, 0.0, 0);
        for epoch in 0..spec.local_epochs {
            (loss, scored) = (0.0, 0);
            for indices in seed.permutation(epoch, count).chunks(batch) {
                if !proceed() {
                    return Err(RuntimeError::Stopped);
                }
                optimizer.set_learning_rate(schedule.learning_rate(steps));
                let stepped = self.train_step(&mut optimizer, examples, indices)?;
                steps += 1;
                if !stepped.loss.is_finite() {
                    return Err(RuntimeError::Diverged { step: steps, loss: stepped.loss });
                }
                loss += f64::from(stepped.loss) * stepped.scored as f64;
                scored += stepped.scored;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(Trained { examples: count as u64, steps, loss: loss / scored.max(1) as f64, seconds })
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
        let (mut loss, mut correct, mut decisions, mut scored) = (0.0, 0, 0, 0);
        let mut parts = indices.chunks(optimizer.micro_batch()).peekable();
        while let Some(part) = parts.next() {
            let measured = self.gradients(examples, part)?;
            if !measured.loss.is_finite() {
                return Ok(measured);
            }
            // Loss and gradients are means over what was scored of the part.
            let weight = measured.scored as f64;
            loss += f64::from(measured.loss) * weight;
            correct += measured.correct;
            decisions += measured.count;
            scored += measured.scored;
            let Some(training) = &self.training else {
                return Err(RuntimeError::Run("the training session is gone".to_owned()));
            };
            if parts.peek().is_some() {
                optimizer.accumulate(&training.gradients, weight)?;
            } else {
                optimizer.step(&mut self.adapter, &training.gradients, weight)?;
            }
        }
        let loss = (loss / scored.max(1) as f64) as f32;
        Ok(Stepped { loss, correct, count: decisions, scored })
    }

    /// An optimizer for training as `training` says, at a constant learning rate until
    /// [`Optimizer::set_learning_rate`]. Its state is zero, and its proximal term pulls to the present adapter.
    pub fn optimizer(&mut self, training: &TrainingSpec) -> Result<Optimizer, RuntimeError> {
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
                Form::Host(HostOptimizer::new(training, anchor, self.layout(), threads)?)
            }
            Residence::Device => Form::Graph(Box::new(self.graph_optimizer(training, &anchor)?)),
        };
        Ok(Optimizer::new(form, training))
    }

    fn graph_optimizer(
        &mut self,
        spec: &TrainingSpec,
        anchor: &[f32],
    ) -> Result<GraphOptimizer, RuntimeError> {
        self.training()?;
        let Self { training: Some(training), adapter, memory, folder, .. } = self else {
            return Err(RuntimeError::Run("the training session is gone".to_owned()));
        };
        let files = &folder.manifest().files;
        let file = match spec.optimizer {
            OptimizerSpec::Sgd { .. } => &files.optimizer_sgd,
            OptimizerSpec::Adamw { .. } => &files.optimizer_adamw,
        };
        let (runtime, device, options) = (&self.runtime, self.device, &self.options);
        let transforms = transforms(spec);
        let step = session::open_edited(runtime, folder, file, device, options, |model| {
            gradient::keep(model, transforms)
        })?;
        let accumulation = transforms
            .accumulate
            .then(|| session::open_edited(runtime, folder, file, device, options, gradient::accumulation));
        let sessions = Sessions { step, accumulation: accumulation.transpose()? };
        let bound = Bound {
            layout: &folder.manifest().adapter,
            adapter: adapter.sets_mut(),
            gradients: &training.gradients,
            anchor,
            allocator: &memory.allocator,
        };
        GraphOptimizer::new(sessions, spec, bound)
    }
}

#[cfg(test)]
mod tests {
    use fedpeft_artifacts::ArtifactFolder;
    use fedpeft_protocol::run::{ScheduleSpec, Span, Warmup};
    use ort::memory::Allocator;

    use super::{super::Memory, *};
    use crate::{ChosenDevice, Device, InMemory, SessionOptions, toy};

    const SEED: OrderSeed<'_> = OrderSeed { run: 1, round: 2, client: "c" };

    /// The adapter before and after one round, on the processor: as it is, or as on a device, where the adapter
    /// is in two sets and steps are graphs.
    struct Bench {
        trainer: Trainer,
        examples: InMemory,
        start: Vec<f32>,
    }

    impl Bench {
        fn new(folder: &ArtifactFolder, residence: Residence) -> Self {
            let (runtime, cpu) = (toy::runtime(), ChosenDevice::Cpu);
            let options = SessionOptions { device: Device::Cpu, threads: 1, ..Default::default() };
            let memory = Memory { allocator: Allocator::default(), residence, _owner: None };
            let trainer = Trainer::in_memory(&runtime, folder.clone(), options, cpu, memory).unwrap();
            let start = folder.initial_adapter().unwrap();
            // The head begins at zero, where the backbone has no gradient yet.
            let start = start.iter().enumerate().map(|(i, v)| v + (i as f32 * 0.7).sin() * 0.1).collect();
            Self { trainer, examples: toy::examples(45), start }
        }

        fn train(&mut self, spec: &TrainingSpec, rounds: Round) -> (Vec<f32>, Trained) {
            self.trainer.set_adapter(&self.start).unwrap();
            let training = LocalTraining { spec, seed: SEED, rounds };
            let trained = self.trainer.train(training, &self.examples, &mut || true).unwrap();
            let mut values = Vec::new();
            self.trainer.adapter_into(&mut values).unwrap();
            (values, trained)
        }
    }

    fn benches() -> ([Bench; 2], tempfile::TempDir) {
        // Before any allocator of it: the library is found here.
        let _library = toy::runtime();
        let directory = tempfile::tempdir().unwrap();
        let folder = toy::built(directory.path());
        ([Residence::Host, Residence::Device].map(|residence| Bench::new(&folder, residence)), directory)
    }

    fn spec() -> TrainingSpec {
        let sgd = OptimizerSpec::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-3 };
        TrainingSpec {
            local_epochs: 2,
            batch_size: 16,
            learning_rate: 0.02,
            optimizer: sgd,
            ..Default::default()
        }
    }

    fn difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    fn length(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn micro_batches_make_the_same_steps() {
        let (benches, _directory) = benches();
        for mut bench in benches {
            let (whole, wanted) = bench.train(&spec(), 1);
            assert!(difference(&whole, &bench.start) > 1e-2);
            // Batches of 16, 16 and 13: in parts of 8, 8 and 5; of 6, 6 and 4 or 1; one by one.
            for accumulate in [2, 3, 16] {
                let (parts, trained) = bench.train(&TrainingSpec { accumulate, ..spec() }, 1);
                assert!(difference(&whole, &parts) < 1e-5, "{accumulate}: {}", difference(&whole, &parts));
                assert_eq!(trained.steps, wanted.steps);
                assert!((trained.loss - wanted.loss).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn devices_train_as_the_processor_does() {
        let ([mut host, mut device], _directory) = benches();
        let warmup = Warmup::Fraction(0.1);
        let everything = TrainingSpec {
            accumulate: 3,
            clip_norm: Some(0.5),
            proximal_mu: 0.1,
            schedule: ScheduleSpec::Cosine { warmup, floor: 0.1, span: Span::Run },
            ..spec()
        };
        let clip = TrainingSpec { clip_norm: Some(0.5), optimizer: OptimizerSpec::default(), ..spec() };
        let proximal = TrainingSpec { proximal_mu: 1.0, ..spec() };
        for spec in [everything, clip, proximal] {
            let ([(a, _), (b, _)], start) = ([host.train(&spec, 3), device.train(&spec, 3)], &host.start);
            assert!(difference(&a, start) > 1e-3);
            assert!(difference(&a, &b) < 1e-6, "{spec:?}: {}", difference(&a, &b));
        }
    }

    #[test]
    fn proximal_terms_hold_the_adapter_back_and_clipping_bounds_a_step() {
        let ([mut bench, _], _directory) = benches();
        let way = |bench: &mut Bench, spec: &TrainingSpec| {
            let (after, trained) = bench.train(spec, 1);
            (length(&after, &bench.start), trained)
        };
        let (free, _) = way(&mut bench, &spec());
        let (held, _) = way(&mut bench, &TrainingSpec { proximal_mu: 5.0, ..spec() });
        assert!(held < 0.7 * free, "{held} is not much less than {free}");
        let plain = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let clip = TrainingSpec { clip_norm: Some(1e-3), optimizer: plain, ..spec() };
        let (clipped, trained) = way(&mut bench, &clip);
        let most = trained.steps as f64 * 0.02 * 1e-3;
        assert!(clipped > 0.0 && clipped <= most * 1.01, "{clipped} is more than {most}");
    }

    #[test]
    fn the_rate_depends_on_the_round_where_it_should() {
        let ([mut bench, _], _directory) = benches();
        let linear = |span| ScheduleSpec::Linear { warmup: Warmup::default(), floor: 0.0, span };
        let [run, round] =
            [Span::Run, Span::Round].map(|span| TrainingSpec { schedule: linear(span), ..spec() });
        assert_ne!(bench.train(&run, 2).0, bench.train(&run, 4).0);
        assert_eq!(bench.train(&round, 2).0, bench.train(&round, 4).0);
        // A task that does not say how many rounds there are is one of the last.
        assert_eq!(bench.train(&run, 0).0, bench.train(&run, 2).0);
    }
}
