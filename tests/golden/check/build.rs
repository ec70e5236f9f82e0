//! Our artifacts for a case.

use std::{collections::BTreeMap, path::Path};

use fedpeft_artifacts::{
    ArtifactFolder, BuildOptions, InputOptions, build,
    manifest::{ElementType, InputSource, TaskSpec},
};
use fedpeft_interp::Value;
use fedpeft_onnx::Model;
use fedpeft_passes::{InputDecl, PrepareOptions, Prepared, prepare};
use fedpeft_peft::{Bottleneck, Ia3, Lora, Method, Peft, Pooling, Prefix, Prompt, PromptInit};
use serde_json::json;

use crate::{
    case::{Case, Spec},
    file,
};

pub fn method(spec: &Spec) -> Peft {
    let lora = Lora {
        rank: spec.rank,
        alpha: spec.alpha,
        targets: spec.targets.clone(),
        dropout: spec.dropout,
        freeze_a: spec.freeze_a,
        residual: spec.residual,
    };
    let method = match spec.method.as_str() {
        "head" => Method::Head,
        "bias" => Method::Bias,
        "layernorm" => Method::LayerNorm,
        "full" => Method::Full,
        "lora" => Method::Lora(lora),
        "dora" => Method::Dora(lora),
        "adapter" => {
            let placement = spec.placement.clone().unwrap();
            let activation = spec.activation.clone().unwrap_or_else(|| "gelu".into());
            Method::Adapter(Bottleneck {
                size: Some(spec.bottleneck),
                placement: serde_json::from_value(json!(placement)).unwrap(),
                activation: serde_json::from_value(json!(activation)).unwrap(),
                shared: spec.shared,
                ..Bottleneck::default()
            })
        }
        "prompt" => Method::Prompt(Prompt {
            tokens: spec.tokens,
            deep: spec.depth == "deep",
            init: PromptInit::Random,
        }),
        "prefix" => Method::Prefix(Prefix { tokens: spec.tokens }),
        "ia3" => Method::Ia3(Ia3::default()),
        other => panic!("method {other}"),
    };
    let bias = spec.bias.iter().map(|_| Method::Bias);
    Peft::new([method].into_iter().chain(bias).collect()).unwrap()
}

fn output(export: &str) -> &'static str {
    match export.split_once('-').unwrap() {
        ("vit", _) => "tokens",
        (_, "lm") => "logits",
        _ => "last_hidden_state",
    }
}

/// The inputs of an export, as those of a batch say.
fn inputs(inputs: &BTreeMap<String, Value>) -> Vec<InputOptions> {
    let input = |(name, value): (&String, &Value)| {
        let shape = value.shape()[1..].to_vec();
        let name = Some(name.clone());
        match name.as_deref() {
            Some("input_ids") => {
                InputOptions { name, dtype: ElementType::I64, shape, source: InputSource::TokenIds }
            }
            Some("attention_mask") => {
                InputOptions { name, dtype: ElementType::I64, shape, source: InputSource::AttentionMask }
            }
            Some("token_type_ids") => {
                InputOptions { name, dtype: ElementType::I64, shape, source: InputSource::TokenTypes }
            }
            _ => InputOptions { name, dtype: ElementType::F32, shape, source: InputSource::Values },
        }
    };
    inputs.iter().map(input).collect()
}

/// The backbone as the methods meet it.
pub fn backbone(batch: &BTreeMap<String, Value>, export: &str) -> Prepared {
    let declare =
        |input: InputOptions| InputDecl { name: input.name, dtype: input.dtype.dtype(), shape: input.shape };
    let options = PrepareOptions {
        output: output(export).into(),
        inputs: inputs(batch).into_iter().map(declare).collect(),
    };
    let model = Model::load(file::path(&format!("exports/{export}.onnx"))).unwrap();
    prepare(model, &options).unwrap_or_else(|error| panic!("{export}: {error}"))
}

fn task(case: &Case) -> TaskSpec {
    let classes = case.logits.shape()[case.logits.ndim() - 1] as u32;
    match case.spec.task.as_str() {
        "classification" => TaskSpec::Classification {
            classes,
            label_smoothing: case.spec.label_smoothing,
            class_weights: case.spec.class_weights.clone(),
        },
        "multi_label" => TaskSpec::MultiLabel { labels: classes, pos_weight: Default::default() },
        "regression" => TaskSpec::Regression { outputs: classes },
        "causal_lm" => TaskSpec::CausalLm { vocabulary: classes },
        other => panic!("task {other}"),
    }
}

/// How the artifacts of `case` on `export` are built.
pub fn options(case: &Case, export: &str) -> BuildOptions {
    BuildOptions {
        model: file::path(&format!("exports/{export}.onnx")),
        output: output(export).into(),
        inputs: inputs(&case.inputs),
        text: None,
        task: task(case),
        method: method(&case.spec),
        seed: 1,
        pooling: if case.spec.pooling == "cls" { Pooling::Cls } else { Pooling::Mean },
        storage: Default::default(),
        dp_sgd: false,
    }
}

/// Builds the artifacts of `case` on `export` in the folder `path`.
pub fn artifacts(case: &Case, export: &str, path: &Path) -> ArtifactFolder {
    build(&options(case, export), path)
        .unwrap_or_else(|error| panic!("{:?} on {export}: {error}", case.spec));
    ArtifactFolder::open(path).unwrap()
}
