//! One method on one model: what PyTorch did.

use std::collections::BTreeMap;

use fedpeft_interp::Value;
use ndarray::ArrayD;
use serde::Deserialize;

use crate::file;

/// What the case is; options that its method has not are absent.
#[derive(Debug, Clone, Deserialize)]
pub struct Spec {
    pub method: String,
    pub pooling: String,
}

/// A trained tensor: its value and the gradient of the loss there.
pub struct Trained {
    pub initial: ArrayD<f64>,
    pub gradient: ArrayD<f64>,
}

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
        let below = |tensors: &BTreeMap<String, Value>, folder: &str| -> BTreeMap<String, Value> {
            let own = |(name, value): (&String, &Value)| {
                Some((name.strip_prefix(folder)?.to_owned(), value.clone()))
            };
            tensors.iter().filter_map(own).collect()
        };
        let float = |value: Value| value.as_float().unwrap().clone();
        let inputs = below(&tensors, "input/");
        let mut gradients = below(&tensors, "gradient/");
        let trained = below(&tensors, "initial/").into_iter().map(|(name, initial)| {
            let gradient = float(gradients.remove(&name).unwrap());
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
