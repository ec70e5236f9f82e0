//! Every export, as it is and prepared, computes what PyTorch computes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{Model, opset};

use crate::{build, compare::assert_close, file};

fn batch(export: &str) -> (HashMap<String, Value>, String, Value) {
    let (mut tensors, _) = file::read("exports/outputs.safetensors");
    tensors.retain(|name, _| name.starts_with(&format!("{export}.")));
    let own = |name: &str| name.rsplit_once('.').unwrap().1.to_owned();
    let mut tensors: BTreeMap<String, Value> = tensors.into_iter().map(|(n, v)| (own(&n), v)).collect();
    let output =
        ["tokens", "last_hidden_state", "logits"].into_iter().find(|n| tensors.contains_key(*n)).unwrap();
    let wanted = tensors.remove(output).unwrap();
    (tensors.into_iter().collect(), output.to_owned(), wanted)
}

fn check(export: &str) {
    let (inputs, output, wanted) = batch(export);
    let mut original = Model::load(file::path(&format!("exports/{export}.onnx"))).unwrap();
    opset::upgrade(&mut original).unwrap();
    let got = Interpreter::new(&original).unwrap().run(&inputs).unwrap();
    assert_close(got[&output].as_float().unwrap(), wanted.as_float().unwrap(), &format!("{export} as it is"));

    let prepared = build::backbone(&inputs.clone().into_iter().collect(), export);
    let operators: BTreeSet<String> = prepared.graph.nodes.iter().map(|node| node.op.clone()).collect();
    if export.starts_with("vit") {
        for gone in ["Erf", "Sqrt", "Pow", "Where", "Conv", "Cast", "Range"] {
            assert!(!operators.contains(gone), "{export}: {gone} is still there: {operators:?}");
        }
    }
    let model = Model::new(prepared.graph);
    let got = Interpreter::new(&model).unwrap().run(&inputs).unwrap();
    assert_close(got[&output].as_float().unwrap(), wanted.as_float().unwrap(), &format!("{export} prepared"));
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
