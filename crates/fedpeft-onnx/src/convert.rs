//! Between protobuf messages and the graph. Reading checks everything a stranger could have got wrong.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    Attribute, DType, Data, Dim, Function, Graph, Model, Node, OnnxError, Tensor, ValueInfo,
    proto::{
        AttributeProto, DimensionProto, DimensionValue, EXTERNAL, FunctionProto, GraphProto, ModelProto,
        NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
        TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
    },
};

/// A tensor whose bytes are in another file, as the file describes it. `location` is unchecked.
pub(crate) struct ExternalRef {
    pub location: String,
    pub offset: u64,
    pub length: Option<u64>,
}

/// Reads the bytes behind an [`ExternalRef`], or decides to keep the reference.
pub(crate) type Resolve<'a> = &'a mut dyn FnMut(&str, &ExternalRef, usize) -> Result<Data, OnnxError>;

pub(crate) fn model(proto: ModelProto, resolve: Resolve<'_>) -> Result<Model, OnnxError> {
    let mut domains = BTreeMap::new();
    let mut opset = None;
    for OperatorSetIdProto { domain, version } in proto.opset_import {
        match domain.as_str() {
            "" | "ai.onnx" => opset = Some(version),
            _ => drop(domains.insert(domain, version)),
        }
    }
    let opset = opset.ok_or_else(|| {
        OnnxError::Unsupported("the model names no version of the standard operators".into())
    })?;
    let graph = proto.graph.ok_or_else(|| OnnxError::Unsupported("the model has no graph".into()))?;
    let functions = proto.functions.into_iter().map(|f| function(f, resolve)).collect::<Result<_, _>>()?;
    let metadata = proto.metadata_props.into_iter().map(|entry| (entry.key, entry.value)).collect();
    let graph = graph_from(graph, resolve)?;
    Ok(Model { ir_version: proto.ir_version, opset, domains, graph, functions, metadata })
}

fn function(proto: FunctionProto, resolve: Resolve<'_>) -> Result<Function, OnnxError> {
    let opset = proto.opset_import.iter().find(|o| o.domain.is_empty()).map_or(0, |o| o.version);
    let nodes = proto.node.into_iter().map(|n| node(n, resolve)).collect::<Result<_, _>>()?;
    Ok(Function {
        domain: proto.domain,
        name: proto.name,
        inputs: proto.input,
        outputs: proto.output,
        nodes,
        opset,
    })
}

fn graph_from(proto: GraphProto, resolve: Resolve<'_>) -> Result<Graph, OnnxError> {
    let mut initializers = BTreeMap::new();
    for tensor_proto in proto.initializer {
        let name = tensor_proto.name.clone();
        let value = tensor(tensor_proto, resolve)?;
        if initializers.insert(name.clone(), value).is_some() {
            return Err(OnnxError::Graph(format!("two initializers are named {name:?}")));
        }
    }
    let nodes = proto.node.into_iter().map(|n| node(n, resolve)).collect::<Result<Vec<_>, _>>()?;
    // Before IR 4 every initializer had to be listed as an input too.
    let is_input = |info: &ValueInfoProto| !initializers.contains_key(&info.name);
    let inputs = proto.input.into_iter().filter(is_input).map(value_info).collect::<Result<_, _>>()?;
    let outputs = proto.output.into_iter().map(value_info).collect::<Result<_, _>>()?;
    let mut produced = BTreeSet::new();
    for name in nodes.iter().flat_map(|n| &n.outputs).filter(|name| !name.is_empty()) {
        if !produced.insert(name.as_str()) || initializers.contains_key(name) {
            return Err(OnnxError::Graph(format!("two producers of the value {name:?}")));
        }
    }
    Ok(Graph { name: proto.name, nodes, inputs, outputs, initializers })
}

fn node(proto: NodeProto, resolve: Resolve<'_>) -> Result<Node, OnnxError> {
    let mut attributes = BTreeMap::new();
    for attribute in proto.attribute {
        let name = attribute.name.clone();
        let value = attribute_from(attribute, resolve)?.ok_or_else(|| {
            OnnxError::Unsupported(format!(
                "{} node {:?}: attribute {name:?} has a type that is not supported (subgraphs, sequences and \
                 references are not)",
                proto.op_type, proto.name
            ))
        })?;
        attributes.insert(name, value);
    }
    let domain = if proto.domain == "ai.onnx" { String::new() } else { proto.domain };
    Ok(Node {
        name: proto.name,
        op: proto.op_type,
        domain,
        inputs: proto.input,
        outputs: proto.output,
        attributes,
    })
}

fn attribute_from(proto: AttributeProto, resolve: Resolve<'_>) -> Result<Option<Attribute>, OnnxError> {
    if !proto.ref_attr_name.is_empty() || proto.g.is_some() {
        return Ok(None);
    }
    Ok(match proto.r#type {
        attribute_type::FLOAT => Some(Attribute::Float(proto.f.unwrap_or_default())),
        attribute_type::INT => Some(Attribute::Int(proto.i.unwrap_or_default())),
        attribute_type::STRING => Some(Attribute::String(proto.s.unwrap_or_default())),
        attribute_type::TENSOR => proto.t.map(|t| tensor(t, resolve)).transpose()?.map(Attribute::Tensor),
        attribute_type::FLOATS => Some(Attribute::Floats(proto.floats)),
        attribute_type::INTS => Some(Attribute::Ints(proto.ints)),
        attribute_type::STRINGS => Some(Attribute::Strings(proto.strings)),
        _ => None,
    })
}

fn value_info(proto: ValueInfoProto) -> Result<ValueInfo, OnnxError> {
    let unsupported =
        || OnnxError::Unsupported(format!("value {:?} is not a tensor of a supported type", proto.name));
    let tensor_type = proto.r#type.and_then(|t| t.tensor_type).ok_or_else(unsupported)?;
    let dtype = DType::from_code(tensor_type.elem_type).ok_or_else(unsupported)?;
    let dim = |(i, dim): (usize, DimensionProto)| match dim.value {
        Some(DimensionValue::DimValue(size)) => {
            usize::try_from(size).map(Dim::Fixed).map_err(|_| unsupported())
        }
        Some(DimensionValue::DimParam(symbol)) if !symbol.is_empty() => Ok(Dim::Symbol(symbol)),
        _ => Ok(Dim::Symbol(format!("{}.dim{i}", proto.name))),
    };
    let shape = tensor_type.shape.map(|s| s.dim.into_iter().enumerate().map(dim).collect::<Result<_, _>>());
    Ok(ValueInfo { dtype, shape: shape.transpose()?, name: proto.name.clone() })
}

fn tensor(proto: TensorProto, resolve: Resolve<'_>) -> Result<Tensor, OnnxError> {
    let name = proto.name;
    let dtype = DType::from_code(proto.data_type).ok_or_else(|| {
        OnnxError::tensor(&name, format!("element type {} is not supported", proto.data_type))
    })?;
    let shape = proto.dims.iter().map(|dim| usize::try_from(*dim)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| OnnxError::tensor(&name, format!("shape {:?} is negative", proto.dims)))?;
    let byte_len = shape.iter().try_fold(dtype.size(), |product, dim| product.checked_mul(*dim));
    let byte_len =
        byte_len.ok_or_else(|| OnnxError::tensor(&name, format!("shape {shape:?} is too large")))?;
    let data = if proto.data_location == EXTERNAL {
        resolve(&name, &external_ref(&name, &proto.external_data)?, byte_len)?
    } else if let Some(raw) = proto.raw_data {
        Data::Inline(raw)
    } else {
        Data::Inline(typed_data(
            dtype,
            &proto.float_data,
            &proto.int32_data,
            &proto.int64_data,
            &proto.double_data,
        ))
    };
    let tensor = Tensor { dtype, shape, data };
    tensor.check(&name)?;
    Ok(tensor)
}

/// The older form of tensor data: typed fields instead of raw bytes.
fn typed_data(dtype: DType, floats: &[f32], int32s: &[i32], int64s: &[i64], doubles: &[f64]) -> Bytes {
    let bytes: Vec<u8> = match dtype {
        DType::F32 => floats.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F64 => doubles.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => int64s.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I32 => int32s.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 | DType::BF16 => int32s.iter().flat_map(|v| (*v as u16).to_le_bytes()).collect(),
        DType::U8 | DType::I8 | DType::Bool => int32s.iter().map(|v| *v as u8).collect(),
    };
    bytes.into()
}

fn external_ref(name: &str, entries: &[StringStringEntryProto]) -> Result<ExternalRef, OnnxError> {
    let find = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
    let number = |key: &str| {
        let parsed = find(key).map(|text| text.trim().parse::<u64>()).transpose();
        parsed.map_err(|_| OnnxError::tensor(name, format!("external {key} is not a number")))
    };
    let location =
        find("location").ok_or_else(|| OnnxError::tensor(name, "external data without a location"))?;
    Ok(ExternalRef {
        location: location.to_owned(),
        offset: number("offset")?.unwrap_or(0),
        length: number("length")?,
    })
}

pub(crate) fn to_proto(model: &Model) -> ModelProto {
    let opsets = |opset: i64| OperatorSetIdProto { domain: String::new(), version: opset };
    let mut opset_import = vec![opsets(model.opset)];
    let others = model.domains.iter().map(|(d, v)| OperatorSetIdProto { domain: d.clone(), version: *v });
    opset_import.extend(others);
    let functions = model.functions.iter().map(|f| FunctionProto {
        name: f.name.clone(),
        input: f.inputs.clone(),
        output: f.outputs.clone(),
        attribute: Vec::new(),
        node: f.nodes.iter().map(node_proto).collect(),
        opset_import: vec![opsets(f.opset)],
        domain: f.domain.clone(),
    });
    ModelProto {
        ir_version: model.ir_version,
        producer_name: "fedpeft".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import,
        metadata_props: model.metadata.iter().map(|(key, value)| entry(key, value)).collect(),
        functions: functions.collect(),
        graph: Some(GraphProto {
            node: model.graph.nodes.iter().map(node_proto).collect(),
            name: model.graph.name.clone(),
            initializer: model.graph.initializers.iter().map(|(name, t)| tensor_proto(name, t)).collect(),
            input: model.graph.inputs.iter().map(value_info_proto).collect(),
            output: model.graph.outputs.iter().map(value_info_proto).collect(),
        }),
    }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value: value.to_owned() }
}

fn node_proto(node: &Node) -> NodeProto {
    NodeProto {
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        name: node.name.clone(),
        op_type: node.op.clone(),
        attribute: node.attributes.iter().map(|(name, value)| attribute_proto(name, value)).collect(),
        domain: node.domain.clone(),
    }
}

fn attribute_proto(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    proto.r#type = match value {
        Attribute::Float(v) => {
            proto.f = Some(*v);
            attribute_type::FLOAT
        }
        Attribute::Int(v) => {
            proto.i = Some(*v);
            attribute_type::INT
        }
        Attribute::String(v) => {
            proto.s = Some(v.clone());
            attribute_type::STRING
        }
        Attribute::Tensor(v) => {
            proto.t = Some(tensor_proto("", v));
            attribute_type::TENSOR
        }
        Attribute::Floats(v) => {
            proto.floats.clone_from(v);
            attribute_type::FLOATS
        }
        Attribute::Ints(v) => {
            proto.ints.clone_from(v);
            attribute_type::INTS
        }
        Attribute::Strings(v) => {
            proto.strings.clone_from(v);
            attribute_type::STRINGS
        }
    };
    proto
}

fn tensor_proto(name: &str, tensor: &Tensor) -> TensorProto {
    let mut proto = TensorProto {
        dims: tensor.shape.iter().map(|dim| *dim as i64).collect(),
        data_type: tensor.dtype.code(),
        name: name.to_owned(),
        ..TensorProto::default()
    };
    match &tensor.data {
        Data::Inline(bytes) => proto.raw_data = Some(bytes.clone()),
        Data::External { location, offset } => {
            proto.data_location = EXTERNAL;
            proto.external_data = vec![
                entry("location", location),
                entry("offset", &offset.to_string()),
                entry("length", &tensor.byte_len().to_string()),
            ];
        }
    }
    proto
}

fn value_info_proto(info: &ValueInfo) -> ValueInfoProto {
    let dim = |dim: &Dim| DimensionProto {
        value: Some(match dim {
            Dim::Fixed(size) => DimensionValue::DimValue(*size as i64),
            Dim::Symbol(symbol) => DimensionValue::DimParam(symbol.clone()),
        }),
    };
    let shape = info.shape.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = TensorTypeProto { elem_type: info.dtype.code(), shape };
    ValueInfoProto { name: info.name.clone(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}
