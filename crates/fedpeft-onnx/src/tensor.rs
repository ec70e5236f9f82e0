//! Tensors: element type, shape, and bytes that are here or in a file beside the model.

use std::borrow::Cow;

use bytes::Bytes;

use crate::OnnxError;

/// Element types, with their numbers in the ONNX specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DType {
    /// `float32`
    F32 = 1,
    /// `uint8`
    U8 = 2,
    /// `int8`
    I8 = 3,
    /// `int32`
    I32 = 6,
    /// `int64`
    I64 = 7,
    /// `bool`, one byte each
    Bool = 9,
    /// `float16`
    F16 = 10,
    /// `float64`
    F64 = 11,
    /// `bfloat16`
    BF16 = 16,
}

impl DType {
    /// The type with number `code`.
    pub fn from_code(code: i32) -> Option<Self> {
        const ALL: [DType; 9] = [
            DType::F32,
            DType::U8,
            DType::I8,
            DType::I32,
            DType::I64,
            DType::Bool,
            DType::F16,
            DType::F64,
            DType::BF16,
        ];
        ALL.into_iter().find(|dtype| dtype.code() == code)
    }

    /// Its number.
    pub fn code(self) -> i32 {
        self as i32
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether values are real numbers, which gradients need.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }
}

/// Where the bytes of a tensor are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Here, little-endian, row-major.
    Inline(Bytes),
    /// In the file `location` of the model's folder, from `offset`.
    External {
        /// File name, without separators.
        location: String,
        /// First byte.
        offset: u64,
    },
}

/// A constant tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Bytes.
    pub data: Data,
}

impl Tensor {
    /// A tensor of `f32` values.
    pub fn f32(shape: impl Into<Vec<usize>>, values: &[f32]) -> Self {
        Self::from_values(DType::F32, shape.into(), values, |v| v.to_le_bytes())
    }

    /// A tensor of `i64` values.
    pub fn i64(shape: impl Into<Vec<usize>>, values: &[i64]) -> Self {
        Self::from_values(DType::I64, shape.into(), values, |v| v.to_le_bytes())
    }

    /// A tensor of `bool` values.
    pub fn bool(shape: impl Into<Vec<usize>>, values: &[bool]) -> Self {
        Self::from_values(DType::Bool, shape.into(), values, |v| [u8::from(v)])
    }

    /// One `f32` without dimensions.
    pub fn scalar(value: f32) -> Self {
        Self::f32([], &[value])
    }

    fn from_values<T: Copy, const N: usize>(
        dtype: DType,
        shape: Vec<usize>,
        values: &[T],
        to_bytes: impl Fn(T) -> [u8; N],
    ) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?}");
        let bytes: Vec<u8> = values.iter().flat_map(|v| to_bytes(*v)).collect();
        Self { dtype, shape, data: Data::Inline(bytes.into()) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of bytes.
    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// The bytes, where they are inline.
    pub fn bytes(&self) -> Option<&Bytes> {
        match &self.data {
            Data::Inline(bytes) => Some(bytes),
            Data::External { .. } => None,
        }
    }

    /// The values of an inline `f32` tensor; borrowed where alignment allows.
    pub fn as_f32(&self) -> Option<Cow<'_, [f32]>> {
        (self.dtype == DType::F32).then_some(())?;
        let bytes = self.bytes()?;
        Some(match bytemuck::try_cast_slice(bytes) {
            Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
            _ => Cow::Owned(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        })
    }

    /// The values of an inline integer or bool tensor.
    pub fn as_i64(&self) -> Option<Vec<i64>> {
        let bytes = self.bytes()?;
        Some(match self.dtype {
            DType::I64 => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            DType::I32 => bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
            DType::I8 => bytes.iter().map(|b| i64::from(*b as i8)).collect(),
            DType::U8 | DType::Bool => bytes.iter().map(|b| i64::from(*b)).collect(),
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => return None,
        })
    }

    /// The values of an inline tensor of any real type, as `f64`.
    pub fn as_f64(&self) -> Option<Vec<f64>> {
        match self.dtype {
            DType::F32 => Some(self.as_f32()?.iter().map(|v| f64::from(*v)).collect()),
            DType::F64 => {
                Some(self.bytes()?.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
            }
            _ => None,
        }
    }

    /// Checks that the inline bytes fill the shape.
    pub fn check(&self, name: &str) -> Result<(), OnnxError> {
        let len = self.shape.iter().try_fold(self.dtype.size(), |product, dim| product.checked_mul(*dim));
        match (len, self.bytes()) {
            (None, _) => Err(OnnxError::tensor(name, format!("shape {:?} is too large", self.shape))),
            (Some(len), Some(bytes)) if bytes.len() != len => Err(OnnxError::tensor(
                name,
                format!(
                    "shape {:?} needs {len} bytes, the model has {}: the file is damaged",
                    self.shape,
                    bytes.len()
                ),
            )),
            _ => Ok(()),
        }
    }
}
