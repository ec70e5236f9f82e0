//! A session with the tensors of batches bound to it.

use std::collections::BTreeMap;

use fedpeft_artifacts::manifest::{CLIP_NORM, DROPOUT_SEED, GRADIENT_SUFFIX};
use ort::{
    memory::Allocator,
    session::{IoBinding, NoSelectedOutputs, RunOptions, Session},
    value::Tensor,
};

use super::{Side, Site, Tensors};
use crate::{
    RuntimeError, Shapes,
    buffer::{Fed, Staged},
    error::one_line,
    measured::MEASURED,
    source::Source,
};

/// Bindings kept at once. An epoch has two batch sizes, its own and that of its last batch, and adapters in
/// device memory have two sides.
const MAX_BINDINGS: usize = 8;

/// Run option that names the record of launches that a run makes or replays: a number, or -1 for none.
const RECORD: &str = "gpu_graph_id";

type Options = RunOptions<NoSelectedOutputs>;

pub(super) struct Program {
    // Bindings and tensors go before the session whose memory they may use.
    bindings: BTreeMap<(usize, Side), Bound>,
    /// How runs of each side name their record, where launches are recorded.
    records: Option<[Options; 2]>,
    session: Session,
}

/// One batch size.
pub(super) struct Bound {
    binding: IoBinding,
    pub inputs: Vec<Staged>,
    pub labels: Staged,
}

impl Bound {
    /// Lets the session read the batch.
    pub fn send(&mut self) -> ort::Result<()> {
        self.inputs.iter_mut().chain([&mut self.labels]).try_for_each(Staged::send)
    }
}

impl Program {
    /// For batches of any size.
    pub fn any(source: &Source) -> Result<Self, RuntimeError> {
        Ok(Self { bindings: BTreeMap::new(), records: None, session: source.open(None, Shapes::Any)? })
    }

    /// For batches of this size alone, in the way that `shapes` says, or as fixed where that cannot be.
    pub fn own(source: &Source, size: usize, shapes: Shapes) -> Result<(Self, Shapes), RuntimeError> {
        let (session, shapes) = match source.open(Some(size), shapes) {
            Err(error) if shapes == Shapes::Recorded => {
                tracing::warn!(reason = one_line(error), "launches of steps cannot be recorded on the GPU");
                (source.open(Some(size), Shapes::Fixed)?, Shapes::Fixed)
            }
            opened => (opened?, shapes),
        };
        let records = match shapes {
            Shapes::Recorded => Some([record("1")?, record("2")?]),
            _ => None,
        };
        Ok((Self { bindings: BTreeMap::new(), records, session }, shapes))
    }

    /// Whether its graph has this input.
    pub fn reads(&self, name: &str) -> bool {
        self.session.inputs().iter().any(|input| input.name() == name)
    }

    /// Whether launches are recorded and replayed.
    pub fn is_recorded(&self) -> bool {
        self.records.is_some()
    }

    /// Binds the tensors of a batch of this size, unless they are: then it gives `false`.
    pub fn bind(
        &mut self,
        source: &Source,
        tensors: &mut Tensors,
        site: Site<'_>,
        batch: usize,
    ) -> Result<bool, RuntimeError> {
        let key = (batch, site.side);
        if self.bindings.contains_key(&key) {
            return Ok(false);
        }
        // A program for one size has no more than two, and records of them have their addresses.
        if self.bindings.len() >= MAX_BINDINGS {
            self.bindings.clear();
        }
        let mut binding = self.session.create_binding()?;
        let stage = |fed: &Fed| Staged::new(fed, batch, site.memory);
        let mut inputs = source.fed.iter().map(stage).collect::<Result<Vec<_>, _>>()?;
        // Tensors of ours are bound by reference: what is written to them later is what the next run reads.
        for (fed, staged) in source.fed.iter().zip(&inputs) {
            staged.bind(&mut binding, &fed.name)?;
        }
        let Some(labels) = inputs.pop() else {
            return Err(RuntimeError::Run("the graph reads no labels".to_owned()));
        };
        for (name, staged) in [(DROPOUT_SEED, &tensors.dropout), (CLIP_NORM, &tensors.clipping)] {
            if let Some(staged) = staged {
                staged.bind(&mut binding, name)?;
            }
        }
        for (spec, tensor) in site.layout.tensors().iter().zip(site.adapter) {
            binding.bind_input(spec.name.as_str(), tensor)?;
        }
        for (name, tensor) in site.residual.named() {
            binding.bind_input(name, tensor)?;
        }
        binding.bind_output(MEASURED, tensors.measured.written())?;
        for (spec, gradient) in site.layout.tensors().iter().zip(&mut tensors.gradients) {
            binding.bind_output(format!("{}{GRADIENT_SUFFIX}", spec.name), gradient)?;
        }
        self.bindings.insert(key, Bound { binding, inputs, labels });
        Ok(true)
    }

    /// The tensors of a batch of this size.
    pub fn bound(&mut self, batch: usize, side: Side) -> Result<&mut Bound, RuntimeError> {
        self.bindings.get_mut(&(batch, side)).ok_or_else(not_bound)
    }

    /// Runs what is bound.
    pub fn run(&mut self, batch: usize, side: Side) -> Result<(), RuntimeError> {
        let Self { bindings, records, session } = self;
        let Bound { binding, .. } = bindings.get(&(batch, side)).ok_or_else(not_bound)?;
        match records {
            Some(records) => session.run_binding_with_options(binding, &records[side])?,
            None => session.run_binding(binding)?,
        };
        Ok(())
    }

    /// Records the launches of a run of what is bound. A record that does not give the bits of a run without one, of
    /// which there should be none, is not to be used: then, and where none can be made, it gives `false`.
    pub fn record(&mut self, tensors: &mut Tensors, batch: usize, side: Side) -> bool {
        match self.compare(tensors, batch, side) {
            Ok(true) => true,
            Ok(false) => {
                tracing::warn!("recorded steps differ from others on the GPU, and are not used");
                false
            }
            Err(error) => {
                tracing::warn!(reason = one_line(error), "launches of steps cannot be recorded on the GPU");
                false
            }
        }
    }

    fn compare(&mut self, tensors: &mut Tensors, batch: usize, side: Side) -> Result<bool, RuntimeError> {
        let Bound { binding, .. } = self.bindings.get(&(batch, side)).ok_or_else(not_bound)?;
        self.session.run_binding_with_options(binding, &record("-1")?)?;
        let wanted = tensors.bits()?;
        // Makes the record, and replays it.
        for _ in 0..2 {
            self.run(batch, side)?;
        }
        Ok(tensors.bits()? == wanted)
    }
}

impl Tensors {
    /// All that a run has written.
    fn bits(&mut self) -> Result<Vec<u64>, RuntimeError> {
        let mut bits: Vec<u64> = self.measured.read()?.iter().map(|value| value.to_bits()).collect();
        for gradient in &self.gradients {
            let mut host = Tensor::<f32>::new(&Allocator::default(), gradient.shape().to_vec())?;
            gradient.copy_into(&mut host)?;
            bits.extend(host.extract_tensor().1.iter().map(|value| u64::from(value.to_bits())));
        }
        Ok(bits)
    }
}

fn record(number: &str) -> Result<Options, RuntimeError> {
    let mut options = RunOptions::new()?;
    options.set(RECORD, number)?;
    Ok(options)
}

fn not_bound() -> RuntimeError {
    RuntimeError::Run("the batch is not bound".to_owned())
}
