//! Training and evaluation of an adapter on one device.

mod local;
mod private;
mod snapshot;

use std::time::Instant;

use crate::{
    ChosenDevice, Examples, FeatureExtractor, Runtime, RuntimeError, SessionOptions, Shapes, Weights,
    adapter::Adapter,
    buffer::{Fed, feeds},
    frozen,
    graph::{Graph, Measured, Site, tensors},
    memory::Memory,
    residual::Residual,
    session,
    source::Source,
};
use fedpeft_artifacts::{
    ArtifactFolder,
    manifest::{ElementType, FileRef},
};
use fedpeft_codec::Layout;

pub use local::{LocalTraining, Trained};
pub use snapshot::{OptimizerState, Snapshot, Standing};

/// Examples that evaluation runs at once.
const EVALUATION_BATCH: usize = 64;

/// One backbone with its adapter, to be trained and evaluated by one client after another. Sessions are
/// made when they are first needed.
pub struct Trainer {
    // Graphs and adapter go before the memory they live in. There is one training graph at a time: that of gradients,
    // or that of clipped ones.
    training: Option<Graph>,
    evaluation: Option<Graph>,
    adapter: Adapter,
    residual: Residual,
    memory: Memory,
    runtime: Runtime,
    folder: ArtifactFolder,
    options: SessionOptions,
    device: ChosenDevice,
    /// Seed of dropout.
    dropout: i64,
    /// Where the graphs begin, if not with the model's inputs.
    begin: Option<Fed>,
    /// Size of most batches of training, once that is known.
    usual: Option<usize>,
    /// How the training session holds frozen weights.
    weights: Weights,
}

/// What evaluation came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluated {
    /// Examples.
    pub examples: u64,
    /// Mean loss.
    pub loss: f64,
    /// Share of right decisions; none where the task makes none (regression), or no token was scored.
    pub accuracy: Option<f64>,
    /// Seconds spent.
    pub seconds: f64,
}

/// Loss and decisions of one step's batch, before the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stepped {
    /// Mean loss.
    pub loss: f32,
    /// Right decisions.
    pub correct: u64,
    /// Decisions: examples, labels of all examples, or scored tokens; none in regression.
    pub count: u64,
    /// What the loss is a mean over: scored tokens of a language model, weights of the examples' classes where
    /// classes have some, else examples.
    pub weight: f64,
}

impl Trainer {
    /// Prepares the artifacts for the device of `options`. The adapter is all zeros until
    /// [`Self::set_adapter`], and residuals are until [`Self::set_residual`].
    ///
    /// # Errors
    /// [`RuntimeError`] naming the file that is missing or damaged, or the device that cannot be used.
    pub fn new(
        runtime: &Runtime,
        folder: ArtifactFolder,
        options: SessionOptions,
    ) -> Result<Self, RuntimeError> {
        folder.verify()?;
        let device = runtime.choose(options.device)?;
        let memory = Memory::of(runtime, device)?;
        Self::in_memory(runtime, folder, options, device, memory)
    }

    fn in_memory(
        runtime: &Runtime,
        folder: ArtifactFolder,
        options: SessionOptions,
        device: ChosenDevice,
        memory: Memory,
    ) -> Result<Self, RuntimeError> {
        let adapter = Adapter::new(&folder.manifest().adapter, &memory.allocator, memory.residence)?;
        let residual = Residual::new(folder.manifest(), &memory.allocator, memory.residence)?;
        let runtime = runtime.clone();
        Ok(Self {
            training: None,
            evaluation: None,
            adapter,
            residual,
            memory,
            runtime,
            folder,
            options,
            device,
            dropout: 0,
            begin: None,
            usual: None,
            weights: Weights::Auto,
        })
    }

    /// The frozen part of the model, and a trainer of the same artifacts that begins where it ends: its examples are the
    /// features that the other makes of them. Both compute what this trainer does, features in other batches than those of
    /// training, which may round them differently.
    ///
    /// # Errors
    /// [`RuntimeError::NotFrozen`] where the method trains more than what comes after the backbone.
    pub fn on_features(&self) -> Result<(FeatureExtractor, Self), RuntimeError> {
        let Self { runtime, folder, options, device, .. } = self;
        let (manifest, mut end) = (folder.manifest(), None);
        let file = &manifest.files.training;
        let session = session::open_edited(runtime, folder, file, *device, options, false, |model| {
            end = frozen::end(model, manifest);
            end.as_ref().map_or(Ok(()), |end| frozen::before(model, end))
        })?;
        let name = end.ok_or_else(|| RuntimeError::NotFrozen(manifest.method.to_string()))?;
        let extractor = FeatureExtractor::new(session, manifest, name.clone())?;
        let begin = Fed { name, dtype: ElementType::F32, shape: extractor.shape().to_vec() };
        let memory = Memory::of(runtime, *device)?;
        let mut trainer = Self::in_memory(runtime, folder.clone(), options.clone(), *device, memory)?;
        trainer.begin = Some(begin);
        Ok((extractor, trainer))
    }

    /// Where sessions for a graph of the artifacts come from, which begin where this trainer does.
    fn source(&self, file: &FileRef) -> Result<Source, RuntimeError> {
        let Self { runtime, folder, options, device, begin, .. } = self;
        Ok(Source {
            runtime: runtime.clone(),
            folder: folder.clone(),
            file: file.clone(),
            device: *device,
            options: SessionOptions { weights: options.weights.for_batches(self.usual), ..options.clone() },
            fed: self.fed()?,
            begins: begin.is_some(),
        })
    }

    /// What batches are written to.
    fn fed(&self) -> Result<Vec<Fed>, RuntimeError> {
        let mut fed = feeds(self.folder.manifest())?;
        if let Some(begin) = &self.begin {
            let labels = fed.pop();
            fed = [begin.clone()].into_iter().chain(labels).collect();
        }
        Ok(fed)
    }

    /// The device that was chosen.
    pub fn device(&self) -> ChosenDevice {
        self.device
    }

    /// What the session of training knows of the size of batches, once there is one: where a GPU cannot record the
    /// launches of a step, less than was asked for.
    pub fn shapes(&self) -> Option<Shapes> {
        self.training.as_ref().map(Graph::shapes)
    }

    /// The artifacts.
    pub fn artifacts(&self) -> &ArtifactFolder {
        &self.folder
    }

    /// Overwrites the adapter with `values`, in layout order.
    pub fn set_adapter(&mut self, values: &[f32]) -> Result<(), RuntimeError> {
        self.adapter.write(&self.folder.manifest().adapter, values)
    }

    /// Overwrites what the factors do not hold with `values`, in the order of
    /// [`Manifest::residual`](fedpeft_artifacts::Manifest::residual), or with zeros where there are none.
    ///
    /// # Errors
    /// [`RuntimeError::Residual`] where the artifacts have others, or none.
    pub fn set_residual(&mut self, values: Option<&[f32]>) -> Result<(), RuntimeError> {
        self.residual.write(values)
    }

    /// Replaces `values` by the adapter's, in layout order.
    pub fn adapter_into(&self, values: &mut Vec<f32>) -> Result<(), RuntimeError> {
        self.adapter.read(values)
    }

    /// Chooses what dropout drops from now on.
    pub fn reseed(&mut self, seed: i64) {
        self.dropout = seed;
    }

    /// Computes loss and gradients of the examples at `indices`, without a step.
    /// Where the method drops inputs, those of [`Self::reseed`].
    pub fn gradients(&mut self, examples: &dyn Examples, indices: &[usize]) -> Result<Stepped, RuntimeError> {
        self.gradients_dropping(self.dropout, examples, indices)
    }

    fn gradients_dropping(
        &mut self,
        seed: i64,
        examples: &dyn Examples,
        indices: &[usize],
    ) -> Result<Stepped, RuntimeError> {
        if indices.is_empty() {
            return Err(RuntimeError::NoExamples);
        }
        self.usual.get_or_insert(indices.len());
        self.training(false)?;
        Ok(stepped(self.run_training(seed, examples, indices)?))
    }

    /// Runs the training graph that there is.
    fn run_training(
        &mut self,
        seed: i64,
        examples: &dyn Examples,
        indices: &[usize],
    ) -> Result<Measured, RuntimeError> {
        let Self { training: Some(training), adapter, residual, folder, memory, .. } = self else {
            return Err(RuntimeError::Run("the training session is gone".to_owned()));
        };
        training.reseed(seed);
        let layout = &folder.manifest().adapter;
        let site = Site { layout, memory, adapter: adapter.current(), residual, side: adapter.side() };
        training.run(site, examples, indices)
    }

    /// Mean loss and accuracy over all examples.
    pub fn evaluate(
        &mut self,
        examples: &dyn Examples,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<Evaluated, RuntimeError> {
        let start = Instant::now();
        let count = examples.len();
        if count == 0 {
            return Err(RuntimeError::NoExamples);
        }
        self.evaluation(count)?;
        let Self { evaluation: Some(evaluation), adapter, residual, folder, memory, .. } = self else {
            return Err(RuntimeError::Run("the evaluation session is gone".to_owned()));
        };
        let layout = &folder.manifest().adapter;
        let site = Site { layout, memory, adapter: adapter.current(), residual, side: adapter.side() };
        let (mut loss, mut correct, mut decisions, mut weight) = (0.0, 0, 0, 0.0);
        let all: Vec<usize> = (0..count).collect();
        for indices in all.chunks(EVALUATION_BATCH) {
            if !proceed() {
                return Err(RuntimeError::Stopped);
            }
            let measured = evaluation.run(site, examples, indices)?;
            let measured = stepped(measured);
            loss += f64::from(measured.loss) * measured.weight;
            correct += measured.correct;
            decisions += measured.count;
            weight += measured.weight;
        }
        let accuracy = (decisions > 0).then(|| correct as f64 / decisions as f64);
        let seconds = start.elapsed().as_secs_f64();
        Ok(Evaluated { examples: count as u64, loss: mean(loss, weight), accuracy, seconds })
    }

    fn layout(&self) -> &Layout {
        &self.folder.manifest().adapter
    }

    /// Makes the training session, that of clipped gradients where these are asked for.
    fn training(&mut self, clips: bool) -> Result<(), RuntimeError> {
        let weights = self.options.weights.for_batches(self.usual);
        if self.training.as_ref().is_none_or(|training| training.clips() != clips || self.weights != weights)
        {
            (self.training, self.weights) = (None, weights);
            let manifest = self.folder.manifest();
            let file = match clips {
                true => manifest.files.dp_training.as_ref().ok_or(RuntimeError::NoClipping)?,
                false => &manifest.files.training,
            };
            let gradients = tensors(&manifest.adapter, &self.memory.allocator)?;
            let usual = self.usual.unwrap_or(1);
            self.training = Some(Graph::new(self.source(file)?, manifest, gradients, &self.memory, usual)?);
        }
        if let (Some(training), Some(usual)) = (&mut self.training, self.usual) {
            training.expect(usual);
        }
        Ok(())
    }

    /// Makes the evaluation session.
    fn evaluation(&mut self, count: usize) -> Result<(), RuntimeError> {
        if self.evaluation.is_none() {
            let manifest = self.folder.manifest();
            let source = self.source(&manifest.files.eval)?;
            let usual = count.min(EVALUATION_BATCH);
            self.evaluation = Some(Graph::new(source, manifest, Vec::new(), &self.memory, usual)?);
        }
        // Clients of fewer examples than that have any number of them.
        if let Some(evaluation) = self.evaluation.as_mut().filter(|_| count >= EVALUATION_BATCH) {
            evaluation.expect(EVALUATION_BATCH);
        }
        Ok(())
    }
}

/// What the graph measured of a batch.
fn stepped(measured: Measured) -> Stepped {
    let Measured { loss, correct, count, weight, .. } = measured;
    Stepped { loss, correct: correct.max(0).cast_unsigned(), count: count.max(0).cast_unsigned(), weight }
}

/// Mean of losses whose weighted sum this is; 0 where nothing was scored.
fn mean(sum: f64, weight: f64) -> f64 {
    if weight > 0.0 { sum / weight } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use fedpeft_protocol::run::{OptimizerSpec, TrainingSpec};

    use ort::memory::Allocator;

    use super::*;
    use crate::memory::Residence;
    use crate::{Batch, Device, Kernels, OrderSeed, toy};

    fn trainer(kernels: Kernels) -> (Trainer, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        toy::write(folder.path());
        let options = SessionOptions { device: Device::Cpu, threads: 2, kernels, ..Default::default() };
        let artifacts = ArtifactFolder::open(folder.path()).unwrap();
        (Trainer::new(&toy::runtime(), artifacts, options).unwrap(), folder)
    }

    fn spec(optimizer: OptimizerSpec) -> TrainingSpec {
        TrainingSpec { local_epochs: 3, batch_size: 16, learning_rate: 0.05, optimizer, ..Default::default() }
    }

    fn local<'a>(spec: &'a TrainingSpec, seed: OrderSeed<'a>) -> LocalTraining<'a> {
        LocalTraining { spec, seed, rounds: 1, correction: None }
    }

    const SEED: OrderSeed<'_> = OrderSeed { run: 1, round: 1, client: "c" };
    const SGD: OptimizerSpec = OptimizerSpec::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4 };

    fn start() -> Vec<f32> {
        (0..18).map(|i| (i as f32 * 0.7).sin() * 0.3).collect()
    }

    #[test]
    fn training_lowers_the_loss_and_evaluation_sees_it() {
        for optimizer in [SGD, OptimizerSpec::default()] {
            let (mut trainer, _folder) = trainer(Kernels::Fused);
            let examples = toy::examples(90);
            trainer.set_adapter(&start()).unwrap();
            let before = trainer.evaluate(&examples, &mut || true).unwrap();
            let trained = trainer.train(local(&spec(optimizer), SEED), &examples, &mut || true).unwrap();
            let after = trainer.evaluate(&examples, &mut || true).unwrap();
            assert_eq!((trained.examples, trained.steps), (90, 18));
            assert!(after.loss < before.loss && after.accuracy > Some(0.9), "{before:?} {after:?}");
        }
    }

    #[test]
    fn fused_kernels_agree_with_the_portable_bodies() {
        let results = [Kernels::Fused, Kernels::Portable].map(|kernels| {
            let (mut trainer, _folder) = trainer(kernels);
            trainer.set_adapter(&start()).unwrap();
            trainer.train(local(&spec(SGD), SEED), &toy::examples(50), &mut || true).unwrap();
            let mut values = Vec::new();
            trainer.adapter_into(&mut values).unwrap();
            values
        });
        for (fused, portable) in results[0].iter().zip(&results[1]) {
            assert!((fused - portable).abs() < 1e-5, "{fused} is not {portable}");
        }
    }

    #[test]
    fn equal_seeds_give_equal_bits_and_adapters_do_not_leak_between_clients() {
        let (mut trainer, _folder) = trainer(Kernels::Fused);
        let examples = toy::examples(50);
        let mut run = |seed: OrderSeed<'_>| {
            trainer.set_adapter(&start()).unwrap();
            trainer.train(local(&spec(SGD), seed), &examples, &mut || true).unwrap();
            let mut values = Vec::new();
            trainer.adapter_into(&mut values).unwrap();
            values
        };
        let first = run(SEED);
        let other = run(OrderSeed { client: "d", ..SEED });
        assert_ne!(first, other);
        assert_eq!(first, run(SEED));
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (mut trainer, _folder) = trainer(Kernels::Fused);
        let examples = toy::examples(7);
        let all: Vec<usize> = (0..7).collect();
        trainer.set_adapter(&start()).unwrap();
        trainer.gradients(&examples, &all).unwrap();
        let gradients: Vec<f32> = trainer
            .training
            .as_ref()
            .unwrap()
            .gradients()
            .iter()
            .flat_map(|tensor| tensor.extract_tensor().1.to_vec())
            .collect();
        for (index, gradient) in gradients.iter().enumerate() {
            let mut loss_at = |delta: f32| {
                let mut values = start();
                values[index] += delta;
                trainer.set_adapter(&values).unwrap();
                trainer.evaluate(&examples, &mut || true).unwrap().loss
            };
            let want = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2;
            assert!((f64::from(*gradient) - want).abs() < 2e-4, "{index}: {gradient} is not {want}");
        }
    }

    #[test]
    fn nothing_to_train_on_and_wrong_adapters_are_errors() {
        let (mut trainer, _folder) = trainer(Kernels::Fused);
        assert!(matches!(
            trainer.set_adapter(&[0.0; 3]),
            Err(RuntimeError::Adapter { got: 3, expected: 18 })
        ));
        struct Nothing;
        impl Examples for Nothing {
            fn len(&self) -> usize {
                0
            }
            fn fill(&self, _: &[usize], _: &mut Batch<'_>) -> Result<(), String> {
                Ok(())
            }
        }
        let trained = trainer.train(local(&spec(SGD), SEED), &Nothing, &mut || true);
        assert!(matches!(trained, Err(RuntimeError::NoExamples)));
        assert!(matches!(trainer.evaluate(&Nothing, &mut || true), Err(RuntimeError::NoExamples)));
    }

    #[test]
    fn divergence_and_stopping_are_reported() {
        let (mut trainer, _folder) = trainer(Kernels::Fused);
        let wild = TrainingSpec { learning_rate: 1e38, ..spec(SGD) };
        trainer.set_adapter(&start()).unwrap();
        let trained = trainer.train(local(&wild, SEED), &toy::examples(90), &mut || true);
        assert!(matches!(trained, Err(RuntimeError::Diverged { .. })), "{trained:?}");
        trainer.set_adapter(&start()).unwrap();
        let trained = trainer.train(local(&spec(SGD), SEED), &toy::examples(90), &mut || false);
        assert!(matches!(trained, Err(RuntimeError::Stopped)));
    }

    #[test]
    fn cuda_where_there_is_none_is_one_clear_line() {
        let runtime = toy::runtime();
        if runtime.probe(0).is_ok() {
            return;
        }
        let error = runtime.choose(Device::Cuda(0)).unwrap_err().to_string();
        assert!(
            error.contains("cuda:0") && error.contains("--device cpu") && !error.contains('\n'),
            "{error}"
        );
        assert_eq!(runtime.choose(Device::Auto).unwrap(), ChosenDevice::Cpu);
    }

    /// Training and evaluation on features are what they are on examples; nothing is computed but what follows.
    #[test]
    fn features_take_the_place_of_examples() {
        let (mut trainer, _folder) = trainer(Kernels::Fused);
        let (mut extractor, mut on_features) = trainer.on_features().unwrap();
        assert_eq!(extractor.width(), toy::FEATURES);
        let examples = toy::examples(150);
        let features = extractor.extract(&examples, &mut || true).unwrap();
        assert_eq!((features.len(), features.bytes()), (150, 150 * (toy::FEATURES * 4 + 8)));
        let train = |trainer: &mut Trainer, examples: &dyn Examples| {
            trainer.set_adapter(&start()).unwrap();
            let trained = trainer.train(local(&spec(SGD), SEED), examples, &mut || true).unwrap();
            let evaluated = trainer.evaluate(examples, &mut || true).unwrap();
            let mut values = Vec::new();
            trainer.adapter_into(&mut values).unwrap();
            (trained.steps, evaluated.accuracy, evaluated.loss, values)
        };
        let (steps, accuracy, loss, values) = train(&mut trainer, &examples);
        let (cached_steps, cached_accuracy, cached_loss, cached) = train(&mut on_features, &features);
        assert_eq!((steps, accuracy), (cached_steps, cached_accuracy));
        assert!((loss - cached_loss).abs() < 1e-6, "{loss} is not {cached_loss}");
        assert!(values.iter().zip(&cached).all(|(a, b)| (a - b).abs() < 1e-6), "{values:?} {cached:?}");
        assert!(matches!(extractor.extract(&examples, &mut || false), Err(RuntimeError::Stopped)));
    }

    #[test]
    fn a_method_within_the_backbone_has_no_features() {
        let directory = tempfile::tempdir().unwrap();
        let folder = toy::built(directory.path());
        let options =
            SessionOptions { device: Device::Cpu, threads: 1, kernels: Kernels::Fused, ..Default::default() };
        let trainer = Trainer::new(&toy::runtime(), folder, options).unwrap();
        let error = trainer.on_features().err().unwrap().to_string();
        assert!(error.contains("method full") && error.contains("cache_features"), "{error}");
    }

    #[test]
    fn damaged_artifacts_are_named() {
        let folder = tempfile::tempdir().unwrap();
        toy::write(folder.path());
        let backbone = folder.path().join("backbone.bin");
        let mut bytes = std::fs::read(&backbone).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&backbone, &bytes).unwrap();
        let options = || SessionOptions { device: Device::Cpu, ..SessionOptions::default() };
        let open = || Trainer::new(&toy::runtime(), ArtifactFolder::open(folder.path())?, options());
        let error = open().err().unwrap().to_string();
        assert!(error.contains("backbone.bin") && error.contains("digest"), "{error}");
        std::fs::remove_file(&backbone).unwrap();
        assert!(open().err().unwrap().to_string().contains("backbone.bin"));
    }

    /// Both optimizers, on the processor: as they are, and as on a device, where the adapter is in two sets
    /// and steps are graphs.
    #[test]
    fn optimizer_graphs_agree_with_the_kernels() {
        // Before any allocator of it: the library is found here.
        let (runtime, cpu) = (toy::runtime(), ChosenDevice::Cpu);
        let directory = tempfile::tempdir().unwrap();
        let folder = toy::built(directory.path());
        let examples = toy::examples(40);
        let all: Vec<usize> = (0..40).collect();
        let adamw = OptimizerSpec::Adamw { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01 };
        let plain = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        for optimizer in [plain, SGD, adamw] {
            let spec = TrainingSpec { learning_rate: 0.01, optimizer, ..Default::default() };
            let adapters = [Residence::Host, Residence::Device].map(|residence| {
                let options = SessionOptions {
                    device: Device::Cpu,
                    threads: 1,
                    kernels: Kernels::Fused,
                    ..Default::default()
                };
                let memory = Memory { allocator: Allocator::default(), residence, _owner: None };
                let mut trainer = Trainer::in_memory(&runtime, folder.clone(), options, cpu, memory).unwrap();
                trainer.set_adapter(&folder.initial_adapter().unwrap()).unwrap();
                let mut values = Vec::new();
                // Twice, because the second optimizer finds the adapter on whichever side the first left it.
                for _ in 0..2 {
                    let mut optimizer = trainer.optimizer(&spec).unwrap();
                    for _ in 0..11 {
                        trainer.train_step(&mut optimizer, &examples, &all).unwrap();
                    }
                }
                trainer.adapter_into(&mut values).unwrap();
                let evaluated = trainer.evaluate(&examples, &mut || true).unwrap();
                (values, evaluated.loss)
            });
            let [(host, host_loss), (device, device_loss)] = adapters;
            assert_ne!(host, folder.initial_adapter().unwrap());
            for (host, device) in host.iter().zip(&device) {
                assert!((host - device).abs() < 1e-6, "{spec:?}: {host} is not {device}");
            }
            assert!((host_loss - device_loss).abs() < 1e-6);
        }
    }
}
