//! What is computed of the class token alone is what it is of all tokens: logits and every gradient.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fedpeft_autodiff::{differentiate, functions};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{Graph, Model, Node, Tensor};
use fedpeft_passes::{Builder, Extent, infer_graph, sink};
use fedpeft_peft::{HEAD_BIAS, HEAD_WEIGHT, Pooling, head};
use ndarray::ArrayD;

use crate::{build, case::Case};

/// Both are computed in f64, sums in another order.
const TOLERANCE: f64 = 1e-10;
const CLASSES: usize = 3;

/// A tuned backbone with a head on the class token, no tensor of which is zero, and what is trained.
fn headed(case: &Case, export: &str) -> (Graph, String, BTreeSet<String>) {
    let mut backbone = build::backbone(&case.inputs, export);
    let mut trained = fedpeft_peft::apply(&build::method(&case.spec), &mut backbone, 1).unwrap();
    backbone.fold_frozen(&trained).unwrap();
    let mut graph = backbone.graph;
    let features = graph.outputs[0].name.clone();
    graph.outputs.clear();
    let mut b = Builder::new(graph, "test.").unwrap();
    let pooled = head::pool(&mut b, &features, Pooling::Cls, None).unwrap();
    let logits = head::attach(&mut b, &pooled, CLASSES).unwrap();
    trained.extend([HEAD_WEIGHT.to_owned(), HEAD_BIAS.to_owned()]);
    let mut graph = b.finish();
    for (seed, name) in trained.iter().enumerate() {
        let tensor = graph.initializers.get_mut(name).unwrap();
        let values = tensor.as_f32().unwrap();
        let moved = values.iter().enumerate().map(|(i, value)| value + 0.1 * ((i * 7 + seed) as f32).sin());
        *tensor = Tensor::f32(tensor.shape.clone(), &moved.collect::<Vec<_>>());
    }
    (graph, logits, trained)
}

/// The logits, and the gradients of the sum of their squares.
fn outputs(
    graph: Graph,
    logits: &str,
    trained: &BTreeSet<String>,
    batch: &HashMap<String, Value>,
) -> BTreeMap<String, ArrayD<f64>> {
    let mut b = Builder::new(graph, "test.").unwrap();
    let squares = b.op("Mul", &[logits, logits]).unwrap();
    let loss = b.add(Node::new("ReduceSum", &[&squares], &[]).with("keepdims", 0i64)).unwrap();
    b.output(logits, "logits").unwrap();
    for (name, gradient) in differentiate(&mut b, &loss, trained).unwrap() {
        b.output(&gradient, &format!("{name}.grad")).unwrap();
    }
    let mut model = Model::new(b.finish());
    functions::attach(&mut model);
    let outputs = Interpreter::new(&model).unwrap().run(batch).unwrap();
    outputs.into_iter().map(|(name, value)| (name, value.as_float().unwrap().clone())).collect()
}

/// How many nodes of an operator compute one token of each example, and how many more.
fn tokens(graph: &Graph, op: &str, axis: usize) -> [usize; 2] {
    let types = infer_graph(graph).unwrap();
    let one = |node: &&Node| {
        let shape = &types.get(&node.outputs[0]).unwrap().shape;
        [Extent::fixed(1), Extent::N].contains(&shape[shape.len() - axis])
    };
    let (one, more): (Vec<&Node>, Vec<&Node>) = graph.nodes.iter().filter(|node| node.is(op)).partition(one);
    [one.len(), more.len()]
}

fn check(name: &str, exports: &[&str]) {
    let case = Case::load(name);
    for export in exports {
        let what = format!("{name} on {export}");
        let (graph, logits, trained) = headed(&case, export);
        let after = sink(&graph).unwrap();
        // Two blocks: of the second, the class token attends alone, and is alone what the layers behind it see.
        assert_eq!(tokens(&graph, "Softmax", 2), [0, 2], "{what}");
        assert_eq!(tokens(&after, "Softmax", 2), [1, 1], "{what}");
        let [of_one, of_all] = tokens(&after, "Gelu", 2);
        assert!(of_one == of_all && of_one > 0, "{what}: {of_one} {of_all}");
        let batch: HashMap<String, Value> = case.inputs.clone().into_iter().collect();
        let [wanted, got] = [graph, after].map(|graph| outputs(graph, &logits, &trained, &batch));
        assert!(wanted.keys().eq(got.keys()) && wanted.len() == trained.len() + 1, "{what}");
        let largest = |values: &ArrayD<f64>| values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let most = wanted.values().map(largest).fold(0.0, f64::max);
        for (value, wanted) in &wanted {
            let error = largest(&(wanted - &got[value]));
            assert!(error <= TOLERANCE * most, "{what}: {value} differs by {error} of {most}");
        }
    }
}

macro_rules! cases {
    ($($test:ident: $case:literal on $exports:expr,)*) => {$(
        #[test]
        fn $test() {
            check($case, &$exports);
        }
    )*};
}

const VIT: [&str; 4] = ["vit-sdpa", "vit-eager", "vit-opset14", "vit-dynamo"];
const BERT: [&str; 3] = ["bert-eager", "bert-sdpa", "bert-dynamo"];

cases! {
    vit_head: "vit-head" on VIT,
    vit_bias: "vit-bias" on VIT,
    vit_layernorm: "vit-layernorm" on VIT,
    vit_full: "vit-full" on VIT,
    vit_lora: "vit-lora" on VIT,
    vit_lora_packed: "vit-lora-packed" on VIT,
    vit_dora: "vit-dora" on VIT,
    vit_dora_packed: "vit-dora-packed" on VIT,
    vit_adapter: "vit-adapter-houlsby" on VIT,
    vit_prompt_shallow: "vit-prompt-shallow" on VIT,
    vit_prompt_deep: "vit-prompt-deep" on VIT,
    vit_prefix: "vit-prefix" on VIT,
    vit_ia3: "vit-ia3" on VIT,
    bert_head: "bert-head" on BERT,
    bert_bias: "bert-bias" on BERT,
    bert_layernorm: "bert-layernorm" on BERT,
    bert_full: "bert-full" on ["bert-eager", "bert-sdpa"],
    bert_lora: "bert-lora-all" on BERT,
    bert_lora_bias: "bert-lora-bias" on BERT,
    bert_dora: "bert-dora" on BERT,
    bert_adapter: "bert-adapter-pfeiffer" on BERT,
    bert_prompt_shallow: "bert-prompt-shallow" on BERT,
    bert_prompt_deep: "bert-prompt-deep" on BERT,
    bert_prefix: "bert-prefix" on BERT,
    bert_ia3: "bert-ia3" on BERT,
}
