//! Local training with everything a specification can ask for.

use fedpeft_artifacts::ArtifactFolder;
use fedpeft_protocol::run::{DpSgdSpec, ExampleSampling, ScheduleSpec, Span, Warmup};
use ort::memory::Allocator;

use super::{super::Memory, *};
use crate::{ChosenDevice, Device, InMemory, OptimizerState, SessionOptions, toy};

const SEED: OrderSeed<'_> = OrderSeed { run: 1, round: 2, client: "c" };

/// The adapter before and after one round, on the processor: as it is, or as on a device, where the adapter
/// is in two sets and steps are graphs.
struct Subject {
    trainer: Trainer,
    examples: InMemory,
    start: Vec<f32>,
}

impl Subject {
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
        self.corrected(spec, rounds, None)
    }

    fn corrected(
        &mut self,
        spec: &TrainingSpec,
        rounds: Round,
        correction: Option<&[f32]>,
    ) -> (Vec<f32>, Trained) {
        self.trainer.set_adapter(&self.start).unwrap();
        let training = LocalTraining { spec, seed: SEED, rounds, correction };
        let trained = self.trainer.train(training, &self.examples, &mut || true).unwrap();
        let mut values = Vec::new();
        self.trainer.adapter_into(&mut values).unwrap();
        (values, trained)
    }
}

fn subjects() -> ([Subject; 2], tempfile::TempDir) {
    // Before any allocator of it: the library is found here.
    let _library = toy::runtime();
    let directory = tempfile::tempdir().unwrap();
    let folder = toy::built(directory.path());
    ([Residence::Host, Residence::Device].map(|residence| Subject::new(&folder, residence)), directory)
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
    let (subjects, _directory) = subjects();
    for mut subject in subjects {
        let (whole, wanted) = subject.train(&spec(), 1);
        assert!(difference(&whole, &subject.start) > 1e-2);
        // Batches of 16, 16 and 13: in parts of 8, 8 and 5; of 6, 6 and 4 or 1; one by one.
        for accumulate in [2, 3, 16] {
            let (parts, trained) = subject.train(&TrainingSpec { accumulate, ..spec() }, 1);
            assert!(difference(&whole, &parts) < 1e-5, "{accumulate}: {}", difference(&whole, &parts));
            assert_eq!(trained.steps, wanted.steps);
            assert!((trained.loss - wanted.loss).abs() < 1e-5);
        }
    }
}

#[test]
fn devices_train_as_the_processor_does() {
    let ([mut host, mut device], _directory) = subjects();
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

/// One step of all 45 examples goes further by the learning rate times the correction, in whatever parts it is computed.
#[test]
fn a_correction_is_added_to_the_gradient_of_every_step() {
    let plain = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let once = TrainingSpec { local_epochs: 1, batch_size: 45, optimizer: plain, ..spec() };
    let (subjects, _directory) = subjects();
    let mut ends = Vec::new();
    for mut subject in subjects {
        let correction: Vec<f32> = (0..subject.start.len()).map(|i| (i as f32 * 1.3).cos()).collect();
        let (free, trained) = subject.train(&once, 1);
        assert_eq!((trained.steps, trained.learning_rates), (1, 0.02));
        for accumulate in [1, 4] {
            let spec = TrainingSpec { accumulate, ..once.clone() };
            let (corrected, _) = subject.corrected(&spec, 1, Some(&correction));
            let wanted: Vec<f32> = free.iter().zip(&correction).map(|(f, c)| f - 0.02 * c).collect();
            assert!(
                difference(&corrected, &wanted) < 1e-6,
                "{accumulate}: {}",
                difference(&corrected, &wanted)
            );
        }
        let several = TrainingSpec { accumulate: 3, batch_size: 16, ..once.clone() };
        ends.push(subject.corrected(&several, 1, Some(&correction)).0);
        subject.trainer.set_adapter(&subject.start).unwrap();
        let training = LocalTraining { spec: &once, seed: SEED, rounds: 1, correction: Some(&[0.0]) };
        let wrong = subject.trainer.train(training, &subject.examples, &mut || true);
        assert!(matches!(wrong, Err(RuntimeError::Adapter { got: 1, .. })));
    }
    assert!(difference(&ends[0], &ends[1]) < 1e-6);
}

#[test]
fn proximal_terms_hold_the_adapter_back_and_clipping_bounds_a_step() {
    let ([mut subject, _], _directory) = subjects();
    let way = |subject: &mut Subject, spec: &TrainingSpec| {
        let (after, trained) = subject.train(spec, 1);
        (length(&after, &subject.start), trained)
    };
    let (free, _) = way(&mut subject, &spec());
    let (held, _) = way(&mut subject, &TrainingSpec { proximal_mu: 5.0, ..spec() });
    assert!(held < 0.7 * free, "{held} is not much less than {free}");
    let plain = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let clip = TrainingSpec { clip_norm: Some(1e-3), optimizer: plain, ..spec() };
    let (clipped, trained) = way(&mut subject, &clip);
    let most = trained.steps as f64 * 0.02 * 1e-3;
    assert!(clipped > 0.0 && clipped <= most * 1.01, "{clipped} is more than {most}");
}

#[test]
fn the_rate_depends_on_the_round_where_it_should() {
    let ([mut subject, _], _directory) = subjects();
    let linear = |span| ScheduleSpec::Linear { warmup: Warmup::default(), floor: 0.0, span };
    let [run, round] = [Span::Run, Span::Round].map(|span| TrainingSpec { schedule: linear(span), ..spec() });
    assert_ne!(subject.train(&run, 2).0, subject.train(&run, 4).0);
    assert_eq!(subject.train(&round, 2).0, subject.train(&round, 4).0);
    // A task that does not say how many rounds there are is one of the last.
    assert_eq!(subject.train(&run, 0).0, subject.train(&run, 2).0);
}

/// Trains in two goes: the first is stopped before step `stop`, and another subject goes on from its snapshot.
fn interrupted(
    subject: &mut Subject,
    other: &mut Subject,
    spec: &TrainingSpec,
    stop: u64,
) -> (Vec<f32>, Trained) {
    subject.trainer.set_adapter(&subject.start).unwrap();
    let training = LocalTraining { spec, seed: SEED, rounds: 1, correction: None };
    let mut snapshot = None;
    let stopped = subject.trainer.train_from(training, None, &subject.examples, &mut |standing| {
        if standing.steps() == stop {
            snapshot = Some(standing.snapshot()?);
        }
        Ok(standing.steps() < stop)
    });
    assert_eq!(stopped.is_ok(), stop == planned(spec));
    // Another client trains on in between: nothing of it may show.
    subject.train(&TrainingSpec { learning_rate: 0.5, ..spec.clone() }, 1);
    other.trainer.set_adapter(&other.start).unwrap();
    let mut first = None;
    let trained = other.trainer.train_from(training, snapshot.as_ref(), &other.examples, &mut |standing| {
        first.get_or_insert(standing.steps());
        Ok(true)
    });
    assert_eq!(first, Some(stop), "steps were repeated or left out");
    let mut values = Vec::new();
    other.trainer.adapter_into(&mut values).unwrap();
    (values, trained.unwrap())
}

/// Steps of the 45 examples.
fn planned(spec: &TrainingSpec) -> u64 {
    u64::from(spec.local_epochs) * 45u64.div_ceil(u64::from(spec.batch_size))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every step of both optimizers, with all that the specification can ask for, at a step, at the end of an epoch
/// and after the last step; in host memory and as on a device.
#[test]
fn resumed_trainings_give_the_bits_of_straight_ones() {
    let (mut subjects, _directory) = subjects();
    let (mut others, _other_directory) = self::subjects();
    let warmup = Warmup::Fraction(0.2);
    let everything = TrainingSpec {
        batch_size: 10,
        accumulate: 3,
        clip_norm: Some(0.5),
        proximal_mu: 0.1,
        schedule: ScheduleSpec::Cosine { warmup, floor: 0.1, span: Span::Round },
        ..spec()
    };
    let adamw = TrainingSpec { optimizer: OptimizerSpec::default(), ..everything.clone() };
    for (subject, other) in subjects.iter_mut().zip(&mut others) {
        for spec in [&spec(), &everything, &adamw] {
            let (straight, wanted) = subject.train(spec, 1);
            for stop in 0..=planned(spec) {
                let (resumed, trained) = interrupted(subject, other, spec, stop);
                assert_eq!(bits(&straight), bits(&resumed), "{spec:?}, stopped before step {stop}");
                assert_eq!((trained.steps, trained.loss), (wanted.steps, wanted.loss));
            }
        }
    }
}

#[test]
fn snapshots_of_other_trainings_are_refused() {
    let ([mut subject, mut device], _directory) = subjects();
    let training = LocalTraining { spec: &spec(), seed: SEED, rounds: 1, correction: None };
    let mut taken = None;
    subject.trainer.set_adapter(&subject.start).unwrap();
    let stopped = subject.trainer.train_from(training, None, &subject.examples, &mut |standing| {
        taken = Some(standing.snapshot()?);
        Ok(standing.steps() < 2)
    });
    assert!(matches!(stopped, Err(RuntimeError::Stopped)));
    let good = taken.unwrap();
    let state = |change: fn(&mut OptimizerState)| {
        let mut state = good.optimizer.clone();
        change(&mut state);
        Snapshot { optimizer: state, ..good.clone() }
    };
    let bad = [
        Snapshot { steps: planned(&spec()) + 1, ..good.clone() },
        Snapshot { adapter: vec![0.0; 3], ..good.clone() },
        state(|state| {
            state.first.pop();
        }),
        // That of AdamW.
        state(|state| state.second = state.first.clone()),
    ];
    for snapshot in &bad {
        for subject in [&mut subject, &mut device] {
            let resumed =
                subject.trainer.train_from(training, Some(snapshot), &subject.examples, &mut |_| Ok(true));
            assert!(matches!(resumed, Err(RuntimeError::Snapshot(_))), "{resumed:?}");
        }
    }
}

fn dp_sgd(clip_norm: f64, noise_multiplier: f64, sampling: ExampleSampling) -> Option<DpSgdSpec> {
    Some(DpSgdSpec { clip_norm, noise_multiplier, sampling, delta: 1e-5, epsilon: None })
}

impl Subject {
    fn train_privately(
        &mut self,
        spec: &TrainingSpec,
        seed: u8,
        snapshot: Option<&Snapshot>,
        stop: u64,
    ) -> (Result<Trained, RuntimeError>, Vec<f32>, Option<Snapshot>) {
        self.trainer.set_adapter(&self.start).unwrap();
        let training = LocalTraining { spec, seed: SEED, rounds: 1, correction: None };
        let (draws, mut last) = (Some(Draws::known(seed)), None);
        let trained =
            self.trainer.train_drawing(training, draws, snapshot, &self.examples, &mut |standing| {
                last = Some(standing.snapshot()?);
                Ok(standing.steps() < stop)
            });
        let mut values = Vec::new();
        self.trainer.adapter_into(&mut values).unwrap();
        (trained, values, last)
    }
}

#[test]
fn private_training_that_clips_and_noises_next_to_nothing_is_training() {
    let (subjects, _directory) = subjects();
    for mut subject in subjects {
        let plain = TrainingSpec { batch_size: 15, proximal_mu: 0.1, ..spec() };
        let (wanted, trained) = subject.train(&plain, 1);
        for accumulate in [1, 2] {
            let dp_sgd = dp_sgd(1e3, 1e-12, ExampleSampling::Shuffle);
            let private = TrainingSpec { dp_sgd, accumulate, ..plain.clone() };
            let (found, values, _) = subject.train_privately(&private, 1, None, u64::MAX);
            let found = found.unwrap();
            assert!(difference(&wanted, &values) < 1e-5, "{}", difference(&wanted, &values));
            assert_eq!(found.steps, trained.steps);
            assert!((found.loss - trained.loss).abs() < 1e-5);
        }
    }
}

#[test]
fn a_step_moves_by_clipped_gradients_and_noise_over_the_mean_batch() {
    let (subjects, _directory) = subjects();
    let sgd = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    for mut subject in subjects {
        let plain = TrainingSpec { learning_rate: 1.0, optimizer: sgd, ..spec() };
        let step = |subject: &mut Subject, clip: f64, noise: f64, seed, indices: &[usize]| {
            let dp_sgd = dp_sgd(clip, noise, ExampleSampling::Poisson);
            let spec = TrainingSpec { dp_sgd, ..plain.clone() };
            let mut private = Private::new(Draws::known(seed), dp_sgd.unwrap(), &spec, 16);
            subject.trainer.set_adapter(&subject.start).unwrap();
            let mut optimizer = subject.trainer.optimizer(&spec).unwrap();
            let Subject { trainer, examples, .. } = subject;
            trainer.private_step(&mut optimizer, &mut private, examples, indices).unwrap();
            let mut values = Vec::new();
            subject.trainer.adapter_into(&mut values).unwrap();
            let moved: Vec<f32> = values.iter().zip(&subject.start).map(|(to, from)| from - to).collect();
            (moved, private.seen, private.clipped)
        };
        let zero = vec![0.0; subject.start.len()];
        // One example's gradient, clipped, and divided by what batches have in the mean.
        let (moved, seen, clipped) = step(&mut subject, 1e-2, 1e-12, 1, &[3]);
        assert_eq!((seen, clipped), (1, 1));
        assert!((length(&moved, &zero) * 16.0 / 1e-2 - 1.0).abs() < 1e-3, "{}", length(&moved, &zero));
        // Two examples in one batch as one after the other.
        let (other, _, _) = step(&mut subject, 1e-2, 1e-12, 1, &[8]);
        let (both, _, _) = step(&mut subject, 1e-2, 1e-12, 1, &[3, 8]);
        let sum: Vec<f32> = moved.iter().zip(&other).map(|(a, b)| a + b).collect();
        assert!(difference(&both, &sum) < 1e-6);
        // No example at all: a step of noise.
        let mut squares = Vec::new();
        for seed in 0..40 {
            let (noise, seen, _) = step(&mut subject, 0.5, 2.0, seed, &[]);
            assert_eq!(seen, 0);
            squares.extend(noise.into_iter().map(|value| f64::from(value).powi(2)));
        }
        let count = squares.len() as f64;
        let variance = squares.iter().sum::<f64>() / count;
        let wanted = (2.0f64 * 0.5 / 16.0).powi(2);
        assert!((variance / wanted - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{variance} is not {wanted}");
    }
}

#[test]
fn private_training_goes_on_from_a_snapshot_with_other_noise() {
    let ([mut subject, _], _directory) = subjects();
    let dp_sgd = dp_sgd(1.0, 1.0, ExampleSampling::Poisson);
    let spec = TrainingSpec { dp_sgd, accumulate: 3, ..spec() };
    let (straight, values, _) = subject.train_privately(&spec, 1, None, u64::MAX);
    let straight = straight.unwrap();
    assert_eq!(straight.steps, 6);
    let (_, again, _) = subject.train_privately(&spec, 1, None, u64::MAX);
    assert_eq!(values, again, "equal draws, other bits");
    let (stopped, _, snapshot) = subject.train_privately(&spec, 1, None, 4);
    assert!(matches!(stopped, Err(RuntimeError::Stopped)));
    let (resumed, other, _) = subject.train_privately(&spec, 2, snapshot.as_ref(), u64::MAX);
    assert_eq!(resumed.unwrap().steps, 6);
    assert_ne!(values, other);
}

#[test]
fn artifacts_that_cannot_clip_are_named() {
    let directory = tempfile::tempdir().unwrap();
    toy::write(directory.path());
    let _library = toy::runtime();
    let folder = ArtifactFolder::open(directory.path()).unwrap();
    let options = SessionOptions { device: Device::Cpu, threads: 1, ..Default::default() };
    let mut trainer = Trainer::new(&toy::runtime(), folder, options).unwrap();
    let spec = TrainingSpec { dp_sgd: dp_sgd(1.0, 1.0, ExampleSampling::Poisson), ..spec() };
    let training = LocalTraining { spec: &spec, seed: SEED, rounds: 1, correction: None };
    let error = trainer.train(training, &toy::examples(9), &mut || true).unwrap_err();
    assert!(matches!(error, RuntimeError::NoClipping) && error.to_string().contains("--dp-sgd"), "{error}");
}
