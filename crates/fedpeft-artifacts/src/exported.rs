//! Exports of models that read text: which of their inputs are which, and how many tokens they know.

use std::path::Path;

use fedpeft_onnx::{Graph, Model, surgery};

use crate::{BuildError, InputOptions, manifest::InputSource};

/// What the inputs of models of text are called, in `transformers` and in what is exported from it.
const NAMES: [(&str, InputSource); 3] = [
    ("input_ids", InputSource::TokenIds),
    ("attention_mask", InputSource::AttentionMask),
    ("token_type_ids", InputSource::TokenTypes),
];

/// The text that an ONNX export reads.
#[derive(Debug, Clone)]
pub struct ExportedText {
    /// Every input that the value depends on.
    pub inputs: Vec<InputOptions>,
    /// Rows of the word embedding, where it is found: token ids are below.
    pub vocabulary: Option<usize>,
}

impl ExportedText {
    /// Reads from the ONNX file `model`, cut at the value `output`, what it needs of texts of `length` tokens.
    ///
    /// # Errors
    /// [`BuildError`] naming an input that texts do not give.
    pub fn read(model: &Path, output: &str, length: usize) -> Result<Self, BuildError> {
        let mut graph = Model::load_graph(model)?.graph;
        surgery::cut(&mut graph, output)?;
        let mut inputs = Vec::new();
        for input in &graph.inputs {
            let known = NAMES.iter().find(|(name, _)| *name == input.name);
            let (name, source) = known.ok_or_else(|| {
                let names = NAMES.map(|(name, _)| name).join(", ");
                BuildError::Option(format!(
                    "the model reads {:?}; of texts, {names} are known: export it with these inputs alone",
                    input.name
                ))
            })?;
            inputs.push(InputOptions::tokens(*name, source.clone(), length));
        }
        Ok(Self { inputs, vocabulary: embedded(&graph) })
    }
}

/// Rows of the matrix that token ids look up.
fn embedded(graph: &Graph) -> Option<usize> {
    // Exporters may convert or reshape the ids first.
    let mut ids = vec![NAMES[0].0];
    for node in &graph.nodes {
        let reads = |slot: usize| node.input(slot).is_some_and(|name| ids.contains(&name));
        match node.op.as_str() {
            "Identity" | "Cast" | "Reshape" if reads(0) => ids.extend(node.output(0)),
            "Gather" if reads(1) => {
                let table = node.input(0).and_then(|name| graph.initializers.get(name));
                if let Some(table) = table.filter(|table| table.shape.len() == 2) {
                    return table.shape.first().copied();
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use fedpeft_onnx::{DType, Dim, Node, Tensor, ValueInfo};

    use super::*;

    fn export(inputs: &[&str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let mut graph = Graph { name: "text".into(), ..Graph::default() };
        let dims = || ["N", "T"].map(|name| Dim::Symbol(name.into())).to_vec();
        graph.inputs = inputs.iter().map(|name| ValueInfo::new(*name, DType::I64, dims())).collect();
        graph.outputs.push(ValueInfo { name: "y".into(), dtype: DType::F32, shape: None });
        graph.initializers.insert("words".into(), Tensor::f32([7, 2], &[0.5; 14]));
        graph.nodes = vec![
            Node::new("Cast", &["input_ids"], &["ids"]).with("to", 7i64),
            Node::new("Gather", &["words", "ids"], &["hidden"]).with("axis", 0i64),
            Node::new("Cast", &[inputs[inputs.len() - 1]], &["real"]).with("to", 1i64),
            Node::new("ReduceSum", &["real"], &["sum"]),
            Node::new("Add", &["hidden", "sum"], &["y"]),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.onnx");
        Model::new(graph).save(&path).unwrap();
        (folder, path)
    }

    #[test]
    fn inputs_before_the_cut_are_known_by_name() {
        let (_folder, path) = export(&["input_ids", "attention_mask"]);
        let text = ExportedText::read(&path, "y", 8).unwrap();
        let names: Vec<_> = text.inputs.iter().map(|input| input.name.as_deref().unwrap()).collect();
        assert_eq!((names, text.vocabulary), (vec!["input_ids", "attention_mask"], Some(7)));
        let text = ExportedText::read(&path, "hidden", 8).unwrap();
        assert_eq!(text.inputs.len(), 1, "the mask lies behind the cut");
    }

    #[test]
    fn inputs_that_no_text_gives_are_named() {
        let (_folder, path) = export(&["input_ids", "pixel_values"]);
        let error = ExportedText::read(&path, "y", 8).unwrap_err().to_string();
        assert!(error.contains("pixel_values") && error.contains("token_type_ids"), "{error}");
    }
}
