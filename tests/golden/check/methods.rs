//! Every method's loss, logits and gradients are PyTorch's.

use std::collections::{BTreeSet, HashMap};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, build};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::Model;
use fedpeft_passes::{PrepareOptions, prepare};
use fedpeft_peft::{
    Activation, Bottleneck, Ia3, Lora, Method, Peft, Placement, Pooling, Prefix, Prompt, PromptInit,
};
use ndarray::ArrayD;

use crate::{
    case::{Case, Spec, Trained},
    compare::assert_close,
    file,
};

fn options(case: &Case, export: &str) -> BuildOptions {
    BuildOptions {
        model: file::path(&format!("exports/{export}.onnx")),
        output: "tokens".into(),
        input_shape: case.inputs["pixel_values"].shape()[1..].to_vec(),
        classes: case.logits.shape()[1] as u32,
        method: peft(&case.spec),
        seed: 0,
        pooling: if case.spec.pooling == "cls" { Pooling::Cls } else { Pooling::Mean },
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
    }
}

/// The method of a case.
fn peft(spec: &Spec) -> Peft {
    let lora = || Lora {
        rank: spec.rank.unwrap(),
        alpha: spec.alpha.unwrap(),
        dropout: 0.0,
        // The reference names whole packed layers by module.
        targets: spec
            .targets
            .iter()
            .flatten()
            .map(|t| t.replace("attn.qkv", "qkv").replace("attn.c_attn", "qkv"))
            .collect(),
    };
    let method = match spec.method.as_str() {
        "lora" => Method::Lora(lora()),
        "dora" => Method::Dora(lora()),
        "ia3" => Method::Ia3(Ia3::default()),
        "adapter" => Method::Adapter(Bottleneck {
            size: spec.bottleneck,
            placement: if spec.placement.as_deref() == Some("houlsby") {
                Placement::Houlsby
            } else {
                Placement::Pfeiffer
            },
            activation: if spec.activation.as_deref() == Some("relu") {
                Activation::Relu
            } else {
                Activation::Gelu
            },
            shared: spec.shared,
            ..Bottleneck::default()
        }),
        "prompt" => Method::Prompt(Prompt {
            tokens: spec.tokens.unwrap(),
            deep: spec.depth.as_deref() == Some("deep"),
            init: PromptInit::Random,
        }),
        "prefix" => Method::Prefix(Prefix { tokens: spec.tokens.unwrap() }),
        name => return name.parse().unwrap(),
    };
    let mut methods = vec![method];
    methods.extend(spec.bias.is_some().then_some(Method::Bias));
    Peft::new(methods).unwrap()
}

/// Our module names to PyTorch's, found by the values of their weights.
fn modules(options: &BuildOptions, model: &str) -> HashMap<String, String> {
    let full = Case::load(&format!("{model}-full"));
    let source = Model::load(&options.model).unwrap();
    let prepare_options =
        PrepareOptions { output: options.output.clone(), input_shape: options.input_shape.clone() };
    let backbone = prepare(source, &prepare_options).unwrap();
    let mut modules = HashMap::new();
    for name in &backbone.parameters {
        let value = Value::from_tensor(&backbone.graph.initializers[name]).unwrap();
        let (theirs, _, _) = find(&full, name, value.as_float().unwrap());
        let module = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
        modules.insert(module(name), module(theirs));
    }
    modules
}

/// PyTorch's name of a tensor that a method added to a module: `MODULE[.PART].lora_A.weight`.
fn translate(name: &str, modules: &HashMap<String, String>) -> String {
    for end in [".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector.weight", ".ia3_l"] {
        let Some(place) = name.strip_suffix(end) else { continue };
        for part in ["", ".query", ".key", ".value"] {
            if let Some(module) = place.strip_suffix(part).and_then(|module| modules.get(module)) {
                return format!("{module}{part}{end}");
            }
        }
    }
    name.to_owned()
}

/// How an adapter tensor lies in memory, compared with PyTorch's.
#[derive(Clone, Copy)]
enum Order {
    Same,
    Transposed,
}

impl Order {
    fn of(self, values: &ArrayD<f64>, shape: &[usize]) -> ArrayD<f64> {
        let values = match self {
            Self::Same => values.clone(),
            Self::Transposed => values.t().as_standard_layout().into_owned(),
        };
        values.into_shape_with_order(shape).unwrap()
    }
}

/// The tensor of the case that `name` with the initial value `initial` is: by name, or as a tensor of the
/// backbone by its values, which exporters rename and transpose.
fn find<'a>(case: &'a Case, name: &str, initial: &ArrayD<f64>) -> (&'a str, &'a Trained, Order) {
    // The reference has no `.weight` behind the magnitudes of a part.
    for name in [name, name.strip_suffix(".weight").unwrap_or(name)] {
        if let Some((name, trained)) = case.trained.get_key_value(name) {
            return (name, trained, Order::Same);
        }
    }
    let same = |other: &ArrayD<f64>, order: Order| {
        other.len() == initial.len() && order.of(other, initial.shape()) == *initial
    };
    let mut found = [Order::Same, Order::Transposed]
        .into_iter()
        .flat_map(|order| case.trained.iter().map(move |(name, trained)| (name.as_str(), trained, order)));
    found
        .find(|(_, trained, order)| same(&trained.initial, *order))
        .unwrap_or_else(|| panic!("{name} {:?} is no tensor of the case", initial.shape()))
}

fn check(name: &str, export: &str) {
    let case = Case::load(name);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifacts");
    let options = options(&case, export);
    let manifest = build(&options, &path).unwrap();
    let modules = modules(&options, &case.spec.model);
    let folder = ArtifactFolder::open(&path).unwrap();
    let checkpoint = folder.initial_adapter().unwrap();

    let mut inputs: HashMap<String, Value> = case.inputs.clone().into_iter().collect();
    inputs.insert("labels".into(), case.labels.clone());
    let mut pairs = Vec::new();
    for (spec, range) in manifest.adapter.ranges() {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        let initial = checkpoint[range].iter().map(|value| f64::from(*value)).collect();
        let initial = ArrayD::from_shape_vec(shape.clone(), initial).unwrap();
        let (theirs, trained, order) = find(&case, &translate(&spec.name, &modules), &initial);
        inputs.insert(spec.name.clone(), Value::Float(order.of(&trained.initial, &shape)));
        pairs.push((spec.name.as_str(), theirs, order.of(&trained.gradient, &shape)));
    }
    let used: BTreeSet<&str> = pairs.iter().map(|(_, theirs, _)| *theirs).collect();
    let missing: Vec<_> = case.trained.keys().filter(|name| !used.contains(name.as_str())).collect();
    assert!(missing.is_empty() && used.len() == pairs.len(), "{name}: not trained: {missing:?}");

    let training = Model::load(folder.file(&manifest.files.training)).unwrap();
    let outputs = Interpreter::new(&training).unwrap().run(&inputs).unwrap();
    assert_close(outputs["loss"].as_float().unwrap(), &case.loss, &format!("{name} on {export}: loss"));
    for (ours, theirs, gradient) in &pairs {
        let got = outputs[&format!("{ours}.grad")].as_float().unwrap();
        assert_close(got, gradient, &format!("{name} on {export}: gradient of {theirs}"));
    }
    let eval = Model::load(folder.file(&manifest.files.eval)).unwrap();
    let outputs = Interpreter::new(&eval).unwrap().run(&inputs).unwrap();
    assert_close(outputs["loss"].as_float().unwrap(), &case.loss, &format!("{name} on {export}: loss"));
    assert_close(outputs["logits"].as_float().unwrap(), &case.logits, &format!("{name} on {export}: logits"));
}

const METHODS: [&str; 16] = [
    "head",
    "bias",
    "layernorm",
    "full",
    "lora",
    "lora-packed",
    "dora",
    "dora-packed",
    "ia3",
    "adapter-houlsby",
    "adapter-pfeiffer",
    "adapter-relu",
    "adapter-shared",
    "prefix",
    "prompt-shallow",
    "prompt-deep",
];

#[test]
fn vit() {
    for export in ["vit-sdpa", "vit-eager", "vit-opset14", "vit-dynamo"] {
        for method in METHODS {
            check(&format!("vit-{method}"), export);
        }
    }
}
