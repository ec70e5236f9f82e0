//! ONNX models.

use fedpeft_autodiff::differentiate;
use fedpeft_onnx::{Data, Dim, Model};
use fedpeft_passes::{Builder, InputDecl, PrepareOptions, Prepared, prepare};
use fedpeft_peft::{Method, Peft, apply};

/// Bytes of the file beside the model, `weights.bin`.
pub const WEIGHTS: usize = 256;

/// Loads a model with its external data, and with the references only, as workers do.
pub fn onnx(bytes: &[u8]) {
    let folder = crate::folder();
    let path = folder.join("model.onnx");
    crate::write(&path, bytes);
    if !folder.join("weights.bin").exists() {
        crate::write(&folder.join("weights.bin"), &[1; WEIGHTS]);
    }
    if let Ok(model) = Model::load_graph(&path) {
        for tensor in model.graph.initializers.values() {
            if let Data::External { location, offset } = &tensor.data {
                assert_eq!(location, "weights.bin", "a reference leaves the folder");
                assert!(*offset as usize + tensor.byte_len() <= WEIGHTS, "a reference leaves its file");
            }
        }
        again(&model);
    }
    if let Ok(model) = Model::load(&path) {
        again(&model);
    }
    let _ = Model::from_bytes(bytes.to_vec());
}

/// What is loaded can be written, and is then the same.
fn again(model: &Model) {
    let bytes = model.to_bytes();
    match Model::from_bytes(bytes.clone()) {
        Ok(again) => assert_eq!(again.to_bytes(), bytes),
        Err(error) => panic!("a model that was loaded is not loaded again: {error}"),
    }
}

/// Makes a training graph of a model: types, constants, fused operators, a method, gradients.
pub fn training(bytes: &[u8]) {
    // Larger dimensions are work without new paths.
    const LARGEST: usize = 64;
    let Ok(model) = Model::from_bytes(bytes.to_vec()) else { return };
    let Some(output) = model.graph.outputs.first().map(|output| output.name.clone()) else { return };
    let input = |input: &fedpeft_onnx::ValueInfo| {
        let dims = input.shape.as_deref().unwrap_or_default().iter().skip(1);
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => (*size).min(LARGEST),
            Dim::Symbol(_) => 4,
        };
        InputDecl { name: Some(input.name.clone()), dtype: input.dtype, shape: dims.map(size).collect() }
    };
    let inputs = model.graph.inputs.iter().map(input).collect();
    let Ok(prepared) = prepare(model, &PrepareOptions { output, inputs }) else { return };
    for method in [Method::Bias, Method::Full] {
        gradients(prepared.clone(), method.into());
    }
    for text in ["lora", "ia3", "adapter", "prompt"] {
        match text.parse() {
            Ok(method) => gradients(prepared.clone(), method),
            Err(error) => panic!("{error}"),
        }
    }
}

fn gradients(mut prepared: Prepared, method: Peft) {
    let Ok(trainable) = apply(&method, &mut prepared, 1) else { return };
    let Some(output) = prepared.graph.outputs.first().map(|output| output.name.clone()) else { return };
    let Ok(mut builder) = Builder::new(prepared.graph, "t.") else { return };
    let Ok(sum) = builder.op("ReduceSum", &[&output]) else { return };
    let _ = differentiate(&mut builder, &sum, &trainable);
}
