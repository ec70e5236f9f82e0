//! Our artifacts for a case.

use std::path::Path;

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, build};
use fedpeft_onnx::Model;
use fedpeft_passes::{PrepareOptions, Prepared, prepare};
use fedpeft_peft::{Bottleneck, Ia3, Lora, Method, Peft, Pooling, Prefix, Prompt, PromptInit};
use serde_json::json;

use crate::{
    case::{Case, Spec},
    file,
};

fn method(spec: &Spec) -> Peft {
    let lora = Lora { rank: spec.rank, alpha: spec.alpha, targets: spec.targets.clone(), dropout: 0.0 };
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

/// The backbone as the methods meet it.
pub fn backbone(case: &Case, export: &str) -> Prepared {
    let options = PrepareOptions {
        output: output(export).into(),
        input_shape: case.inputs["pixel_values"].shape()[1..].to_vec(),
    };
    prepare(Model::load(file::path(&format!("exports/{export}.onnx"))).unwrap(), &options).unwrap()
}

/// Builds the artifacts of `case` on `export` in the folder `path`.
pub fn artifacts(case: &Case, export: &str, path: &Path) -> ArtifactFolder {
    let options = BuildOptions {
        model: file::path(&format!("exports/{export}.onnx")),
        output: output(export).into(),
        input_shape: case.inputs["pixel_values"].shape()[1..].to_vec(),
        classes: case.logits.shape()[1] as u32,
        method: method(&case.spec),
        seed: 1,
        pooling: if case.spec.pooling == "cls" { Pooling::Cls } else { Pooling::Mean },
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
    };
    build(&options, path).unwrap_or_else(|error| panic!("{:?} on {export}: {error}", case.spec));
    ArtifactFolder::open(path).unwrap()
}
