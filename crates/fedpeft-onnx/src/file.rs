//! Models on disk. A model file is data from a stranger: its external data must lie in plain files of its own
//! folder, and nothing it says is believed before it is checked against the bytes that are there.

use std::{
    collections::HashMap,
    fs,
    ops::Range,
    path::{Component, Path},
};

use bytes::Bytes;
use prost::Message;

use crate::{
    Data, Model, OnnxError,
    convert::{self, ExternalRef},
};

/// What to do with tensors whose bytes are in another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum External {
    /// Read the bytes.
    Read,
    /// Keep the reference, having checked that it can be read.
    Check,
    /// Keep the reference.
    Keep,
}

/// Largest model file: protobuf messages end at 2 GiB.
const MAX_MODEL: u64 = 1 << 31;

impl Model {
    /// Reads a model and all the external data it refers to.
    ///
    /// # Errors
    /// [`OnnxError`] naming the file or tensor, where a file is missing, truncated or not ONNX, or where
    /// external data lies outside of the model's folder.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, OnnxError> {
        Self::load_with(path.as_ref(), External::Read)
    }

    /// Reads a model and leaves external data where it is: the tensors keep their reference, which lies within a
    /// plain file of the model's folder. Whoever opens that file next finds there what the model says.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_graph(path: impl AsRef<Path>) -> Result<Self, OnnxError> {
        Self::load_with(path.as_ref(), External::Check)
    }

    fn load_with(path: &Path, external: External) -> Result<Self, OnnxError> {
        let size =
            fs::metadata(path).map_err(|source| OnnxError::Io { path: path.to_owned(), source })?.len();
        if size > MAX_MODEL {
            let reason = format!("it has {size} bytes, {MAX_MODEL} are the most");
            return Err(OnnxError::Format { path: path.to_owned(), reason });
        }
        let bytes = read(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::decode(bytes, path, folder, external)
    }

    /// Decodes a model without external data from memory.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, OnnxError> {
        Self::decode(bytes.into(), Path::new("model"), Path::new("."), External::Keep)
    }

    fn decode(bytes: Bytes, path: &Path, folder: &Path, external: External) -> Result<Self, OnnxError> {
        let format = |reason: String| OnnxError::Format { path: path.to_owned(), reason };
        if bytes.is_empty() {
            return Err(format("the file is empty".into()));
        }
        let proto = crate::proto::ModelProto::decode(bytes)
            .map_err(|e| format(format!("{e}; the file is damaged, truncated, or of another kind")))?;
        let mut files = HashMap::new();
        convert::model(proto, &mut |name, reference, len| match external {
            External::Read => read_external(folder, &mut files, name, reference, len),
            External::Check => {
                let size = size_of_external(folder, name, &reference.location)?;
                external_range(name, reference, len, size)?;
                Ok(kept(reference))
            }
            External::Keep => safe_location(name, &reference.location).map(|()| kept(reference)),
        })
    }

    /// The bytes of the model file; equal models give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        convert::to_proto(self).encode_to_vec()
    }

    /// Writes the model file. External data must already lie beside it.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), OnnxError> {
        let path = path.as_ref();
        fs::write(path, self.to_bytes()).map_err(|source| OnnxError::Io { path: path.to_owned(), source })
    }
}

fn read(path: &Path) -> Result<Bytes, OnnxError> {
    fs::read(path).map(Bytes::from).map_err(|source| OnnxError::Io { path: path.to_owned(), source })
}

/// A location is a plain file name: `..`, separators and absolute paths would lead out of the folder.
fn safe_location(name: &str, location: &str) -> Result<(), OnnxError> {
    let mut components = Path::new(location).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if plain && !location.contains(['\\', '\0']) {
        Ok(())
    } else {
        Err(OnnxError::tensor(
            name,
            format!("external data in {location:?} would lie outside of the model's folder"),
        ))
    }
}

fn kept(reference: &ExternalRef) -> Data {
    Data::External { location: reference.location.clone(), offset: reference.offset }
}

fn read_external(
    folder: &Path,
    files: &mut HashMap<String, Bytes>,
    name: &str,
    reference: &ExternalRef,
    byte_len: usize,
) -> Result<Data, OnnxError> {
    let location = &reference.location;
    if !files.contains_key(location) {
        let size = size_of_external(folder, name, location)?;
        // Before a file is read that the tensor does not lie in.
        external_range(name, reference, byte_len, size)?;
        files.insert(location.clone(), read(&folder.join(location))?);
    }
    let file = &files[location];
    let range = external_range(name, reference, byte_len, file.len() as u64)?;
    Ok(Data::Inline(file.slice(range)))
}

/// Size of a file of external data, which is a plain file of `folder`: a link could lead out of it.
fn size_of_external(folder: &Path, name: &str, location: &str) -> Result<u64, OnnxError> {
    safe_location(name, location)?;
    let path = folder.join(location);
    let metadata = fs::symlink_metadata(&path).map_err(|source| OnnxError::Io { path, source })?;
    if !metadata.is_file() {
        return Err(OnnxError::tensor(name, format!("external data {location:?} is not a plain file")));
    }
    Ok(metadata.len())
}

/// Where the `byte_len` bytes of a tensor lie in its file of `size` bytes.
fn external_range(
    name: &str,
    ExternalRef { location, offset, length }: &ExternalRef,
    byte_len: usize,
    size: u64,
) -> Result<Range<usize>, OnnxError> {
    let end = offset.checked_add(byte_len as u64).filter(|end| *end <= size);
    match end {
        Some(end) if length.is_none_or(|length| length == byte_len as u64) => {
            Ok(*offset as usize..end as usize)
        }
        _ => Err(OnnxError::tensor(
            name,
            format!("needs {byte_len} bytes from offset {offset} of {location:?}, which has {size}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Dim, Graph, Node, Tensor, ValueInfo};
    use proptest::prelude::*;

    fn model() -> Model {
        let mut graph = Graph { name: "g".into(), ..Graph::default() };
        graph.inputs.push(ValueInfo::new("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(2)]));
        graph.outputs.push(ValueInfo::new("y", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(2)]));
        graph.initializers.insert("w".into(), Tensor::f32([2], &[1.0, -2.5]));
        graph.nodes.push(Node::new("Mul", &["x", "w"], &["y"]).named("mul").with("note", vec![1i64, 2]));
        Model { metadata: [("task".into(), "sums".into())].into(), ..Model::new(graph) }
    }

    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        model().save(&path).unwrap();
        assert_eq!(Model::load(&path).unwrap(), model());
    }

    #[test]
    fn external_data_is_read_from_the_folder_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        let mut external = model();
        let tensor = external.graph.initializers.get_mut("w").unwrap();
        tensor.data = Data::External { location: "w.bin".into(), offset: 4 };
        external.save(&path).unwrap();
        for load in [Model::load, Model::load_graph] {
            assert!(matches!(load(path.as_path()), Err(OnnxError::Io { .. })), "missing file");
        }
        fs::write(dir.path().join("w.bin"), [0; 8]).unwrap();
        for load in [Model::load, Model::load_graph] {
            assert!(matches!(load(path.as_path()), Err(OnnxError::Tensor { .. })), "truncated file");
        }
        let bytes: Vec<u8> = [9.0f32, 1.0, -2.5].iter().flat_map(|v| v.to_le_bytes()).collect();
        fs::write(dir.path().join("w.bin"), bytes).unwrap();
        assert_eq!(Model::load(&path).unwrap(), model());
        assert_eq!(Model::load_graph(&path).unwrap(), external, "references are kept");
        // The last is how ONNX Runtime names its own memory.
        for location in [
            "../w.bin",
            "/etc/passwd",
            "a/../../w.bin",
            "..",
            "",
            "w.bin\0",
            "a\\w.bin",
            "*/_ORT_MEM_ADDR_/*",
        ] {
            let tensor = external.graph.initializers.get_mut("w").unwrap();
            tensor.data = Data::External { location: location.into(), offset: 0 };
            external.save(&path).unwrap();
            assert!(Model::load(&path).is_err(), "{location}");
            assert!(Model::load_graph(&path).is_err(), "{location}");
        }
    }

    #[test]
    fn external_data_that_is_elsewhere_or_claims_too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        fs::write(dir.path().join("w.bin"), [0; 64]).unwrap();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::write(elsewhere.path(), [0; 64]).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("link.bin")).unwrap();
        fs::create_dir(dir.path().join("folder.bin")).unwrap();
        let huge = usize::MAX / 8;
        for (location, offset, shape) in [
            ("link.bin", 0, vec![2]),
            ("folder.bin", 0, vec![2]),
            ("w.bin", 64, vec![2]),
            ("w.bin", u64::MAX, vec![2]),
            ("w.bin", 0, vec![17]),
            ("w.bin", 0, vec![huge]),
            ("w.bin", 0, vec![huge, huge]),
            ("w.bin", 0, vec![huge, huge, 0]),
        ] {
            let mut external = model();
            let data = Data::External { location: location.into(), offset };
            // Written as bytes: no tensor of ours has such a shape.
            let tensor = external.graph.initializers.get_mut("w").unwrap();
            *tensor = Tensor { dtype: DType::F32, shape: vec![2], data };
            let mut proto = convert::to_proto(&external);
            proto.graph.as_mut().unwrap().initializer[0].dims = shape.iter().map(|dim| *dim as i64).collect();
            fs::write(&path, proto.encode_to_vec()).unwrap();
            for load in [Model::load, Model::load_graph] {
                let error = load(path.as_path()).unwrap_err();
                assert!(matches!(error, OnnxError::Tensor { .. }), "{location} {offset} {shape:?}: {error}");
            }
        }
    }

    #[test]
    fn a_missing_or_foreign_file_is_named() {
        let error = Model::load("/nonexistent/m.onnx").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/m.onnx"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        for bytes in [&b""[..], b"<html>not a model</html>", &model().to_bytes()[..20]] {
            fs::write(&path, bytes).unwrap();
            assert!(Model::load(&path).is_err());
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Model::from_bytes(bytes);
        }

        #[test]
        fn damaged_models_never_panic(at in 0usize..200, value in any::<u8>()) {
            let mut bytes = model().to_bytes();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = Model::from_bytes(bytes);
        }
    }
}
