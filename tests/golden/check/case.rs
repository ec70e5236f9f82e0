//! One method on one model: what PyTorch did.

use std::collections::BTreeMap;

use fedpeft_interp::Value;
use ndarray::ArrayD;
use serde::Deserialize;

use crate::file;

/// What the case is, as `methods.py` describes it; options that its method has not are absent.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    pub model: String,
    pub method: String,
    pub pooling: String,
    pub task: String,
    pub rank: u32,
    pub alpha: f64,
    pub targets: Vec<String>,
    pub dropout: f64,
    pub freeze_a: bool,
    pub residual: bool,
    pub bias: Option<String>,
    pub tokens: u32,
    pub depth: String,
    pub bottleneck: u32,
    pub placement: Option<String>,
    pub activation: Option<String>,
    pub shared: bool,
    pub label_smoothing: f32,
    pub class_weights: Vec<f32>,
}

/// A trained tensor: its value and the gradient of the loss there.
#[derive(Clone)]
pub struct Trained {
    pub initial: ArrayD<f64>,
    pub gradient: ArrayD<f64>,
}

#[derive(Clone)]
pub struct Case {
    pub spec: Spec,
    pub inputs: BTreeMap<String, Value>,
    pub labels: Value,
    pub loss: ArrayD<f64>,
    pub logits: ArrayD<f64>,
    /// By PyTorch's names.
    pub trained: BTreeMap<String, Trained>,
}

impl Case {
    pub fn load(name: &str) -> Self {
        let (mut tensors, metadata) = file::read(&format!("methods/{name}.safetensors"));
        let spec = serde_json::from_str(&metadata["case"]).unwrap();
        let below = |folder: &str| -> BTreeMap<String, Value> {
            let own = |(name, value): (&String, &Value)| {
                Some((name.strip_prefix(folder)?.to_owned(), value.clone()))
            };
            tensors.iter().filter_map(own).collect()
        };
        let float = |value: Value| value.as_float().unwrap().clone();
        let inputs = below("input/");
        let mut gradients = below("gradient/");
        let trained = below("initial/").into_iter().map(|(name, initial)| {
            let gradient = float(gradients.remove(&name).unwrap());
            // HF peft puts `.weight` behind the magnitudes of a layer, the reference not behind those of a part.
            let magnitudes = name.ends_with("lora_magnitude_vector");
            let name = if magnitudes { format!("{name}.weight") } else { name };
            (name, Trained { initial: float(initial), gradient })
        });
        Self {
            spec,
            inputs,
            trained: trained.collect(),
            labels: tensors.remove("labels").unwrap(),
            loss: float(tensors.remove("loss").unwrap()),
            logits: float(tensors.remove("logits").unwrap()),
        }
    }
}
