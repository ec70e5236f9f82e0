//! Every export, as it is and prepared, computes what PyTorch computes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{Model, opset};
use ndarray::{Axis, Slice};

use crate::{build, compare::assert_close, file};

/// The batch of an export, the name of its output, and what PyTorch computes.
fn batch(export: &str) -> (BTreeMap<String, Value>, &'static str, Value) {
    let (mut tensors, _) = file::read("exports/outputs.safetensors");
    tensors.retain(|name, _| name.starts_with(&format!("{export}.")));
    let own = |name: &str| name.rsplit_once('.').unwrap().1.to_owned();
    let mut tensors: BTreeMap<String, Value> = tensors.into_iter().map(|(n, v)| (own(&n), v)).collect();
    let outputs = ["tokens", "last_hidden_state", "logits"];
    let output = outputs.into_iter().find(|name| tensors.contains_key(*name)).unwrap();
    let wanted = tensors.remove(output).unwrap();
    (tensors, output, wanted)
}

/// The example at `at`, as a batch of one.
pub fn example(value: &Value, at: usize) -> Value {
    let rows = Slice::from(at..at + 1);
    match value {
        Value::Float(values) => Value::Float(values.slice_axis(Axis(0), rows).to_owned()),
        Value::Int(values) => Value::Int(values.slice_axis(Axis(0), rows).to_owned()),
        Value::Bool(values) => Value::Bool(values.slice_axis(Axis(0), rows).to_owned()),
    }
}

/// `model` computes `wanted`, for the batch and for its second example alone: no batch size is built in.
fn computes(model: &Model, inputs: &BTreeMap<String, Value>, output: &str, wanted: &Value, what: &str) {
    let alone = inputs.iter().map(|(name, value)| (name.clone(), example(value, 1))).collect();
    for (inputs, wanted) in [(inputs.clone(), wanted.clone()), (alone, example(wanted, 1))] {
        let inputs: HashMap<String, Value> = inputs.into_iter().collect();
        let got = Interpreter::new(model).unwrap().run(&inputs).unwrap();
        assert_close(got[output].as_float().unwrap(), wanted.as_float().unwrap(), what);
    }
}

fn check(export: &str) {
    let (inputs, output, wanted) = batch(export);
    let mut model = Model::load(file::path(&format!("exports/{export}.onnx"))).unwrap();
    opset::upgrade(&mut model).unwrap();
    computes(&model, &inputs, output, &wanted, &format!("{export} as it is"));

    let prepared = build::backbone(&inputs, export);
    let operators: BTreeSet<String> = prepared.graph.nodes.iter().map(|node| node.op.clone()).collect();
    // A mask is cast and compared for good, and RMSNorm has its root.
    let of_images =
        ["Sqrt", "Pow", "Where", "Conv", "Cast", "Range"].into_iter().filter(|_| export.starts_with("vit"));
    for gone in of_images.chain(["Erf", "ConstantOfShape"]) {
        assert!(!operators.contains(gone), "{export}: {gone} is still there: {operators:?}");
    }
    let model = Model::new(prepared.graph);
    computes(&model, &inputs, output, &wanted, &format!("{export} prepared"));
}

macro_rules! exports {
    ($($test:ident: $export:literal,)*) => {$(
        #[test]
        fn $test() {
            check($export);
        }
    )*};
}

exports! {
    vit_sdpa: "vit-sdpa",
    vit_eager: "vit-eager",
    vit_opset14: "vit-opset14",
    vit_dynamo: "vit-dynamo",
    bert_eager: "bert-eager",
    bert_sdpa: "bert-sdpa",
    bert_dynamo: "bert-dynamo",
    gpt_eager: "gpt-eager",
    gpt_sdpa: "gpt-sdpa",
    gpt_dynamo: "gpt-dynamo",
    gpt_lm: "gpt-lm",
    llama_eager: "llama-eager",
    llama_dynamo: "llama-dynamo",
}
