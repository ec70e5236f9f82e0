//! Making a session from a graph of the artifact folder.

use std::{collections::HashSet, path::PathBuf};

use fedpeft_artifacts::{ArtifactFolder, manifest::FileRef};
use fedpeft_onnx::{Data, Graph, Model, OnnxError};
use ort::session::{Session, builder::GraphOptimizationLevel};

use crate::{
    ChosenDevice, Device, Runtime, RuntimeError, error::one_line, fuse, largest, leaves, operators,
    operators::DOMAIN, products,
};

/// Which kernels compute gradients on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// Ours, where the graph names them.
    #[default]
    Fused,
    /// Standard operators only, as on every other device.
    Portable,
}

/// What sessions know of the size of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Shapes {
    /// What is fastest on the device: recorded on a GPU, any size on the processor.
    #[default]
    Auto,
    /// One session takes batches of any size.
    Any,
    /// Batches of the usual size have a session of their own, which is made for their shapes; all others share one.
    Fixed,
    /// As fixed, and a GPU replays the launches of the first step in all others of that size, as a CUDA graph.
    /// While they are recorded, which is once in a session and thread, nothing else of the process may use a GPU.
    Recorded,
}

impl Shapes {
    /// What is meant on this device.
    pub(crate) fn on(self, device: ChosenDevice) -> Self {
        match (self, device) {
            (Self::Auto, ChosenDevice::Cpu) => Self::Any,
            (Self::Auto, ChosenDevice::Cuda(_)) => Self::Recorded,
            (Self::Recorded, ChosenDevice::Cpu) => Self::Fixed,
            (shapes, _) => shapes,
        }
    }
}

/// How frozen weights are held on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// Packed for small batches, which gain most by it and leave the memory for it; else once.
    #[default]
    Auto,
    /// Once for each session, at most. Where products read them in both directions, they stay where the backbone's file is
    /// mapped, which all sessions and processes of a machine share; where in one alone, they are packed.
    Once,
    /// Packed: copied into the order in which products read them, one copy for each direction. Fastest.
    Packed,
}

/// Examples of the largest batch that is small: ordering weights anew in each product takes a tenth of a step and more, and
/// activations take as much less memory than those of 32 examples as packed weights take.
const SMALL_BATCH: usize = 8;

impl Weights {
    /// What is meant for batches that mostly have this size.
    pub(crate) fn for_batches(self, usual: Option<usize>) -> Self {
        match self {
            Self::Auto if usual.is_some_and(|usual| usual <= SMALL_BATCH) => Self::Packed,
            Self::Auto => Self::Once,
            chosen => chosen,
        }
    }
}

/// How sessions are made.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Device to run on.
    pub device: Device,
    /// Threads of one session; 0 means one per physical core.
    pub threads: usize,
    /// Kernels for gradients.
    pub kernels: Kernels,
    /// What they know of the size of batches.
    pub shapes: Shapes,
    /// How frozen weights are held.
    pub weights: Weights,
    /// Where ONNX Runtime writes how long each operator took, when a session ends: the path without its ending.
    pub profile: Option<PathBuf>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let (kernels, weights, shapes) = (Kernels::default(), Weights::default(), Shapes::default());
        Self { device: Device::Auto, threads: 0, kernels, weights, shapes, profile: None }
    }
}

/// A session for one graph of the folder as `edit` leaves it, which records the launches of a run where that is asked for.
/// Frozen weights stay in the folder's backbone file, which ONNX Runtime maps.
pub(crate) fn open_edited(
    runtime: &Runtime,
    folder: &ArtifactFolder,
    file: &FileRef,
    device: ChosenDevice,
    options: &SessionOptions,
    recorded: bool,
    edit: impl FnOnce(&mut Model) -> Result<(), OnnxError>,
) -> Result<Session, RuntimeError> {
    let fail = |reason: String| RuntimeError::Graph { graph: file.name.clone(), device, reason };
    let mut model = Model::load_graph(folder.file(file)).map_err(|error| fail(error.to_string()))?;
    standard_operators(&model).map_err(fail)?;
    edit(&mut model).map_err(|error| fail(error.to_string()))?;
    let mut fused = false;
    if device == ChosenDevice::Cpu && options.kernels == Kernels::Fused {
        fused = fuse::fuse(&mut model).map_err(|error| fail(error.to_string()))?;
        fused |= operators::take_over(&mut model);
    }
    if device != ChosenDevice::Cpu {
        products::from_sums(&mut model);
        largest::from_arg_max(&mut model.graph);
    }
    let path = std::path::absolute(folder.path()).map_err(|error| fail(error.to_string()))?;
    let Some(path) = path.to_str() else {
        return Err(fail("the path of its folder is not UTF-8; move it".to_owned()));
    };
    leaves::last_first(&mut model.graph);
    let packed =
        device != ChosenDevice::Cpu || options.weights == Weights::Packed || reads_once(&model.graph);
    let bytes = model.to_bytes();
    // ONNX Runtime has a copy of its own: it takes the place of this one.
    drop(model);
    commit(runtime, &bytes, path, Form { fused, packed, recorded }, device, options)
        .map_err(|error| fail(one_line(error)))
}

/// Whether no matrix of the backbone's file is read by two nodes.
fn reads_once(graph: &Graph) -> bool {
    let is_stored = |name: &&String| {
        let tensor = graph.initializers.get(*name);
        tensor.is_some_and(|tensor| tensor.shape.len() > 1 && matches!(tensor.data, Data::External { .. }))
    };
    let mut read = HashSet::new();
    graph.nodes.iter().flat_map(|node| &node.inputs).filter(is_stored).all(|name| read.insert(name))
}

/// Artifacts hold standard operators and ours. Others are of some provider, and may be more than arithmetic on the
/// tensors of the graph: `EPContext` of TensorRT opens the file that it names.
fn standard_operators(model: &Model) -> Result<(), String> {
    let mut nodes =
        model.graph.nodes.iter().chain(model.functions.iter().flat_map(|function| &function.nodes));
    match nodes.find(|node| !node.domain.is_empty() && node.domain != DOMAIN) {
        None => Ok(()),
        Some(node) => {
            let domain: String = node.domain.chars().take(80).collect();
            Err(format!(
                "{} is of the domain {domain:?}: artifacts have standard operators only",
                node.label()
            ))
        }
    }
}

/// What a session does with its graph.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Form {
    /// Nodes are of our operators.
    pub fused: bool,
    /// Weights are packed.
    pub packed: bool,
    /// Launches are recorded.
    pub recorded: bool,
}

pub(crate) fn commit(
    runtime: &Runtime,
    model: &[u8],
    folder: &str,
    Form { fused, packed, recorded }: Form,
    device: ChosenDevice,
    options: &SessionOptions,
) -> ort::Result<Session> {
    let mut builder = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(options.threads)?
        .with_inter_threads(1)?
        .with_parallel_execution(false)?
        // A plan of memory per batch size beside the arena costs a quarter more memory and, on the
        // processor, saves no time.
        .with_memory_pattern(device != ChosenDevice::Cpu)?
        .with_prepacking(packed)?
        .with_deterministic_compute(true)?
        // Threads wait actively between the operators of a step (a sixth of a `full` step on two threads), but
        // not between steps: an idle worker takes no processor time.
        .with_intra_op_spinning(true)?
        .with_config_entry("session.force_spinning_stop", "1")?
        .with_config_entry("session.model_external_initializers_file_folder_path", folder)?;
    if let Some(path) = &options.profile {
        builder = builder.with_profiling(path)?;
    }
    if fused {
        builder = builder.with_operators(operators::domain()?)?;
    }
    device.add_to(builder, recorded)?.commit_from_memory(model)
}

#[cfg(test)]
mod tests {
    use fedpeft_onnx::Node;

    use super::*;
    use crate::toy;

    #[test]
    fn a_graph_opens_its_backbone_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        toy::write(folder.path());
        let artifacts = ArtifactFolder::open(folder.path()).unwrap();
        let file = artifacts.manifest().files.eval.clone();
        let path = artifacts.file(&file);
        let good = Model::load_graph(&path).unwrap();
        let runtime = toy::runtime();
        let error = |model: &Model| {
            model.save(&path).unwrap();
            let options = SessionOptions::default();
            let opened =
                open_edited(&runtime, &artifacts, &file, ChosenDevice::Cpu, &options, false, |_| Ok(()));
            opened.err().map(|error| error.to_string())
        };
        assert_eq!(error(&good), None);
        let refused = |model: &Model, expected: &str| {
            let error = error(model).unwrap();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        };

        // TensorRT loads the engine that such a node names, a path and all.
        let mut context = good.clone();
        let engine = Node::new("EPContext", &["x"], &["context"]).with("ep_cache_context", "/etc/passwd");
        context.graph.nodes.push(Node { domain: "com.microsoft".into(), ..engine.with("embed_mode", 0i64) });
        refused(&context, "\"com.microsoft\"");
        let mut hidden = toy::model(good.graph.clone());
        hidden.functions.extend(fedpeft_autodiff::functions::all().into_iter().take(1));
        hidden.functions[0].nodes.extend(context.graph.nodes.last().cloned());
        refused(&hidden, "\"com.microsoft\"");

        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link.bin")).unwrap();
        // The last is how ONNX Runtime names its own memory, with an address as the offset.
        for (location, offset) in [
            ("/etc/passwd", 0),
            ("../backbone.bin", 0),
            ("./../backbone.bin", 0),
            ("link.bin", 0),
            ("missing.bin", 0),
            ("backbone.bin", 4),
            ("backbone.bin", u64::MAX),
            ("*/_ORT_MEM_ADDR_/*", 4096),
        ] {
            let mut outside = good.clone();
            let frozen = outside.graph.initializers.get_mut("frozen").unwrap();
            frozen.data = Data::External { location: location.into(), offset };
            refused(&outside, location.trim_start_matches("./"));
            // Constants in attributes are tensors as well.
            let mut attribute = good.clone();
            let tensor = outside.graph.initializers["frozen"].clone();
            attribute.graph.nodes.insert(0, Node::new("Constant", &[], &["c"]).with("value", tensor));
            refused(&attribute, location.trim_start_matches("./"));
        }
    }
}
