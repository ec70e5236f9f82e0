//! LoRA, DoRA and IA3 as HF `peft` stores them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! `peft` tunes whole layers. An update of some columns of a packed layer is one of all its columns that is zero
//! (IA3: one) elsewhere, and updates of several parts are one of higher rank.

use std::collections::{BTreeMap, HashMap};

use fedpeft_artifacts::Manifest;
use fedpeft_codec::encode;
use fedpeft_peft::{
    HEAD_BIAS, HEAD_WEIGHT, Lora, Method,
    merge::{Change, MergedLayer},
};
use ndarray::Array1;
use safetensors::{Dtype, tensor::TensorView};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{ExportError, Trained};

/// The files of a folder that HF `peft` loads.
#[derive(Debug, Clone)]
pub struct PeftFolder {
    /// `adapter_config.json`
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub model: Vec<u8>,
    /// `head.safetensors`: `head.weight [features, width]` and `head.bias`, where the model has a head of ours.
    pub head: Option<Vec<u8>>,
}

/// Describes `merged` to HF `peft`. Modules are called after the weights of the backbone.
///
/// # Errors
/// [`ExportError::Peft`] where the method is not one that `peft` has, a layer's module is not known, or its factors do not
/// hold all that was learnt.
pub fn peft_folder<'a>(
    manifest: &Manifest,
    trained: impl Into<Trained<'a>>,
    merged: &[MergedLayer],
) -> Result<PeftFolder, ExportError> {
    let fail = |reason: String| Err(ExportError::Peft(reason));
    let trained = trained.into();
    if !trained.fits_its_rank() {
        return fail(
            "the run averaged with lora_exact, and what its factors do not hold has no place in HF peft: use format onnx, \
             which has all of it merged"
                .into(),
        );
    }
    let (config, tensors) = match manifest.method.methods() {
        [Method::Lora(lora) | Method::Dora(lora)] => low_rank(lora, merged)?,
        [Method::Ia3(_)] => scales(merged)?,
        _ => {
            let method = &manifest.method;
            return fail(format!(
                "HF peft has no {method}: it loads lora, dora and ia3 without another method"
            ));
        }
    };
    if merged.is_empty() {
        return fail("no layer of this model was tuned".into());
    }
    let mut head = Vec::new();
    for (spec, range) in manifest.adapter.ranges() {
        if spec.name == HEAD_WEIGHT || spec.name == HEAD_BIAS {
            let shape = spec.shape.iter().map(|dim| *dim as usize).collect();
            head.push(Stored { name: spec.name.clone(), shape, values: trained.adapter[range].to_vec() });
        }
    }
    let mut config = serde_json::to_vec_pretty(&config)?;
    config.push(b'\n');
    let head = (!head.is_empty()).then(|| store(&head)).transpose()?;
    Ok(PeftFolder { config, model: store(&tensors)?, head })
}

/// What every configuration has.
#[derive(Serialize)]
struct Config {
    peft_type: &'static str,
    task_type: Option<()>,
    base_model_name_or_path: Option<()>,
    inference_mode: bool,
    /// `peft` finds out by itself which layers store `[in, out]`.
    fan_in_fan_out: bool,
    target_modules: Vec<String>,
    #[serde(flatten)]
    method: Value,
}

impl Config {
    fn new(peft_type: &'static str, target_modules: Vec<String>, method: Value) -> Self {
        Self {
            peft_type,
            task_type: None,
            base_model_name_or_path: None,
            inference_mode: true,
            fan_in_fan_out: false,
            target_modules,
            method,
        }
    }
}

struct Stored {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Stored {
    fn new<'a>(
        module: &str,
        role: &str,
        shape: impl Into<Vec<usize>>,
        values: impl IntoIterator<Item = &'a f64>,
    ) -> Self {
        let values = values.into_iter().map(|value| *value as f32).collect();
        Self { name: format!("base_model.model.{module}.{role}"), shape: shape.into(), values }
    }
}

fn low_rank(spec: &Lora, merged: &[MergedLayer]) -> Result<(Config, Vec<Stored>), ExportError> {
    let (mut modules, mut tensors) = (Vec::new(), Vec::new());
    let (mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new());
    let mut decomposed = false;
    for layer in merged {
        let module = module(layer)?;
        let Change::LowRank { a, b, scale, magnitude } = &layer.change else { continue };
        let rank = a.nrows();
        if rank != spec.rank as usize {
            ranks.insert(module, rank);
            alphas.insert(module, scale * rank as f64);
        }
        tensors.push(Stored::new(module, "lora_A.weight", a.shape(), a));
        tensors.push(Stored::new(module, "lora_B.weight", b.shape(), b));
        if let Some(magnitude) = magnitude {
            decomposed = true;
            tensors.push(Stored::new(module, "lora_magnitude_vector", magnitude.shape(), magnitude));
        }
        modules.push(module.to_owned());
    }
    let method = json!({
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "use_dora": decomposed,
    });
    Ok((Config::new("LORA", modules, method), tensors))
}

fn scales(merged: &[MergedLayer]) -> Result<(Config, Vec<Stored>), ExportError> {
    let (mut modules, mut inner, mut tensors) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |module: &str, shape: [usize; 2], scale: &Array1<f64>| {
        tensors.push(Stored::new(module, "ia3_l", shape, scale));
        modules.push(module.to_owned());
    };
    for layer in merged {
        let module = module(layer)?;
        match &layer.change {
            Change::Outputs(scale) => add(module, [scale.len(), 1], scale),
            Change::Inputs(scale) => {
                add(module, [1, scale.len()], scale);
                inner.push(module.to_owned());
            }
            Change::LowRank { .. } => {}
        }
    }
    let method = json!({ "feedforward_modules": inner, "init_ia3_weights": true });
    Ok((Config::new("IA3", modules, method), tensors))
}

/// The module whose weight was changed.
fn module(layer: &MergedLayer) -> Result<&str, ExportError> {
    layer.weight.strip_suffix(".weight").ok_or_else(|| {
        ExportError::Peft(format!(
            "the module of weight {:?} is not known: build the artifacts from a model whose weights have the names of \
             their modules",
            layer.weight
        ))
    })
}

fn store(tensors: &[Stored]) -> Result<Vec<u8>, ExportError> {
    let bytes: Vec<_> = tensors.iter().map(|tensor| encode(&tensor.values)).collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        Ok((tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?))
    });
    let views = views.collect::<Result<Vec<_>, ExportError>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    fn layer(weight: &str, rank: usize) -> MergedLayer {
        let (a, b) = (Array2::ones((rank, 4)), Array2::ones((6, rank)));
        MergedLayer { weight: weight.into(), change: Change::LowRank { a, b, scale: 2.0, magnitude: None } }
    }

    #[test]
    fn several_parts_of_a_layer_are_one_update_of_higher_rank() {
        let spec = Lora { rank: 2, alpha: 4.0, ..Lora::default() };
        let (config, tensors) =
            low_rank(&spec, &[layer("h.0.qkv.weight", 4), layer("h.0.up.weight", 2)]).unwrap();
        let config = serde_json::to_value(config).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(4.0)));
        assert_eq!(config["rank_pattern"], json!({ "h.0.qkv": 4 }));
        // HF peft divides by the rank of the layer; the scale stays 2.
        assert_eq!(config["alpha_pattern"], json!({ "h.0.qkv": 8.0 }));
        assert_eq!(tensors[0].name, "base_model.model.h.0.qkv.lora_A.weight");
        assert_eq!(tensors[1].shape, [6, 4]);
    }

    #[test]
    fn weights_without_a_module_are_named() {
        let error = low_rank(&Lora::default(), &[layer("val_13", 8)]).err().unwrap().to_string();
        assert!(error.starts_with("format peft: the module of weight \"val_13\" is not known"), "{error}");
    }
}
