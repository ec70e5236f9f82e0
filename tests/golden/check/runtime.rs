//! Running a graph by either engine.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::OnceLock,
};

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::Model;
use ndarray::ArrayD;
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue},
    value::Tensor,
};

/// What computes.
#[derive(Debug, Clone, Copy)]
pub enum Engine {
    /// Our reference evaluator, in f64.
    Interpreter,
    /// A stock ONNX Runtime, in f32, as the graph is stored.
    OnnxRuntime,
}

impl Engine {
    /// The real outputs of the graph in the file `model`.
    pub fn run(self, model: &Path, inputs: &HashMap<String, Value>) -> BTreeMap<String, ArrayD<f64>> {
        match self {
            Self::Interpreter => {
                let model = Model::load(model).unwrap();
                let outputs = Interpreter::new(&model).unwrap().run(inputs).unwrap();
                let real = |(name, value): (String, Value)| Some((name, value.as_float().ok()?.clone()));
                outputs.into_iter().filter_map(real).collect()
            }
            Self::OnnxRuntime => on_onnx_runtime(model, inputs),
        }
    }
}

fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let library = fedpeft_testkit::assets().ort_lib().unwrap();
        ort::init_from(library).unwrap().with_telemetry(false).build().unwrap()
    })
}

fn on_onnx_runtime(model: &Path, inputs: &HashMap<String, Value>) -> BTreeMap<String, ArrayD<f64>> {
    let mut builder = Session::builder(environment()).unwrap().with_intra_threads(1).unwrap();
    let mut session = builder.commit_from_file(model).unwrap();
    let declared: Vec<String> = session.inputs().iter().map(|input| input.name().to_owned()).collect();
    let feeds = declared.into_iter().map(|name| {
        let value: SessionInputValue<'_> = match &inputs[&name] {
            Value::Float(values) => {
                let narrow: Vec<f32> = values.iter().map(|value| *value as f32).collect();
                Tensor::from_array((values.shape().to_vec(), narrow)).unwrap().into()
            }
            Value::Int(values) => {
                let values = (values.shape().to_vec(), values.iter().copied().collect::<Vec<i64>>());
                Tensor::from_array(values).unwrap().into()
            }
            Value::Bool(_) => panic!("{name}: no input of ours is a truth value"),
        };
        (name, value)
    });
    let outputs = session.run(feeds.collect::<Vec<_>>()).unwrap();
    let real = |(name, value): (&str, ort::value::ValueRef<'_>)| {
        let (shape, values) = value.try_extract_tensor::<f32>().ok()?;
        let shape: Vec<usize> = shape.iter().map(|dim| *dim as usize).collect();
        let values = values.iter().map(|value| f64::from(*value)).collect();
        Some((name.to_owned(), ArrayD::from_shape_vec(shape, values).unwrap()))
    };
    outputs.iter().filter_map(real).collect()
}
