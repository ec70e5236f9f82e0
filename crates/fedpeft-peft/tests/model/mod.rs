//! A ViT with a packed projection (Dosovitskiy et al., arXiv 2010.11929), random weights.

use bytes::Bytes;
use fedpeft_onnx::{DType, Data, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_passes::{InputDecl, PrepareOptions, Prepared, prepare};

pub struct Vit {
    width: usize,
    depth: usize,
    heads: usize,
    image: usize,
    patch: usize,
    /// Random numbers of which every weight is the beginning: 86 million of them need no memory.
    noise: Bytes,
    graph: Graph,
}

impl Vit {
    /// ViT-B/16 at 224 pixels.
    pub fn base() -> Self {
        let mut state = 1u32;
        let mut noise = Vec::with_capacity(4 * 768 * 3072);
        for _ in 0..768 * 3072 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.extend(((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes());
        }
        let graph = Graph::default();
        Self { width: 768, depth: 12, heads: 12, image: 224, patch: 16, noise: noise.into(), graph }
    }

    pub fn prepared(mut self) -> Prepared {
        let (c, side) = (self.width, self.image / self.patch);
        let dims = [Dim::Symbol("N".into()), Dim::Fixed(3), Dim::Fixed(self.image), Dim::Fixed(self.image)];
        self.graph.inputs.push(ValueInfo::new("pixels", DType::F32, dims.to_vec()));
        let weight = self.weight("patch.weight", &[c, 3, self.patch, self.patch]);
        let bias = self.weight("patch.bias", &[c]);
        let size = vec![self.patch as i64; 2];
        let conv = Node::new("Conv", &["pixels", &weight, &bias], &[]);
        let map = self.push(conv.with("kernel_shape", size.clone()).with("strides", size));
        let shape = self.ints(&[-1, c as i64, (side * side) as i64]);
        let map = self.op("Reshape", &[&map, &shape]);
        let patches = self.push(Node::new("Transpose", &[&map], &[]).with("perm", vec![0i64, 2, 1]));
        let class = self.weight("cls_token", &[1, 1, c]);
        let batch = self.push(Node::new("Shape", &["pixels"], &[]).with("start", 0i64).with("end", 1i64));
        let rest = self.ints(&[1, c as i64]);
        let shape = self.push(Node::new("Concat", &[&batch, &rest], &[]).with("axis", 0i64));
        let class = self.op("Expand", &[&class, &shape]);
        let tokens = self.push(Node::new("Concat", &[&class, &patches], &[]).with("axis", 1i64));
        let positions = self.weight("pos_embed", &[1, side * side + 1, c]);
        let mut x = self.op("Add", &[&tokens, &positions]);
        for i in 0..self.depth {
            x = self.block(&x, i);
        }
        let output = self.norm(&x, "norm");
        self.graph.outputs.push(ValueInfo { name: output.clone(), dtype: DType::F32, shape: None });
        let shape = vec![3, self.image, self.image];
        let input = InputDecl { name: None, dtype: DType::F32, shape };
        prepare(Model::new(self.graph), &PrepareOptions { output, inputs: vec![input] }).unwrap()
    }

    fn block(&mut self, x: &str, i: usize) -> String {
        let (c, h) = (self.width, self.heads);
        let tokens = ((self.image / self.patch).pow(2) + 1) as i64;
        let name = |part: &str| format!("blocks.{i}.{part}");
        let normal = self.norm(x, &name("norm1"));
        let qkv = self.linear(&normal, &name("attn.qkv"), c, 3 * c);
        let shape = self.ints(&[-1, tokens, 3, h as i64, (c / h) as i64]);
        let heads = self.op("Reshape", &[&qkv, &shape]);
        let heads = self.transpose(&heads, &[2, 0, 3, 1, 4]);
        let [q, k, v] = [0i64, 1, 2].map(|part| {
            let index = format!("index.{part}");
            self.graph.initializers.insert(index.clone(), Tensor::i64([], &[part]));
            self.push(Node::new("Gather", &[&heads, &index], &[]).with("axis", 0i64))
        });
        self.graph.initializers.insert("scale".into(), Tensor::scalar(1.0 / ((c / h) as f32).sqrt()));
        let q = self.op("Mul", &[&q, "scale"]);
        let k = self.transpose(&k, &[0, 1, 3, 2]);
        let scores = self.op("MatMul", &[&q, &k]);
        let shares = self.push(Node::new("Softmax", &[&scores], &[]).with("axis", -1i64));
        let mixed = self.op("MatMul", &[&shares, &v]);
        let mixed = self.transpose(&mixed, &[0, 2, 1, 3]);
        let shape = self.ints(&[-1, tokens, c as i64]);
        let mixed = self.op("Reshape", &[&mixed, &shape]);
        let branch = self.linear(&mixed, &name("attn.proj"), c, c);
        let x = self.op("Add", &[x, &branch]);
        let normal = self.norm(&x, &name("norm2"));
        let inner = self.linear(&normal, &name("mlp.fc1"), c, 4 * c);
        let active = self.op("Gelu", &[&inner]);
        let branch = self.linear(&active, &name("mlp.fc2"), 4 * c, c);
        self.op("Add", &[&x, &branch])
    }

    fn linear(&mut self, x: &str, name: &str, from: usize, to: usize) -> String {
        let weight = self.weight(&format!("{name}.weight"), &[from, to]);
        let bias = self.weight(&format!("{name}.bias"), &[to]);
        let product = self.op("MatMul", &[x, &weight]);
        self.op("Add", &[&bias, &product])
    }

    fn norm(&mut self, x: &str, name: &str) -> String {
        let scale = self.weight(&format!("{name}.weight"), &[self.width]);
        let bias = self.weight(&format!("{name}.bias"), &[self.width]);
        self.push(Node::new("LayerNormalization", &[x, &scale, &bias], &[]).with("axis", -1i64))
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> String {
        let bytes = self.noise.slice(..4 * shape.iter().product::<usize>());
        let tensor = Tensor { dtype: DType::F32, shape: shape.to_vec(), data: Data::Inline(bytes) };
        self.graph.initializers.insert(name.to_owned(), tensor);
        name.to_owned()
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = format!("ints.{}", self.graph.initializers.len());
        self.graph.initializers.insert(name.clone(), Tensor::i64([values.len()], values));
        name
    }

    fn transpose(&mut self, x: &str, perm: &[i64]) -> String {
        self.push(Node::new("Transpose", &[x], &[]).with("perm", perm.to_vec()))
    }

    fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.push(Node::new(op, inputs, &[]))
    }

    fn push(&mut self, node: Node) -> String {
        let name = format!("value.{}", self.graph.nodes.len());
        self.graph.nodes.push(Node { outputs: vec![name.clone()], ..node });
        name
    }
}
