//! Values that flow along the edges of a graph.

use fedpeft_onnx::{DType, Data, Tensor};
use ndarray::ArrayD;

use crate::{
    InterpError,
    error::{Result, invalid, unsupported},
    shape::{bounded, filled},
};

/// A tensor, wide enough to be exact.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Real numbers of any width.
    Float(ArrayD<f64>),
    /// Integers of any width.
    Int(ArrayD<i64>),
    /// Truth values.
    Bool(ArrayD<bool>),
}

/// Applies an expression to the array of a [`Value`], whatever its elements are.
macro_rules! with_array {
    ($value:expr, $array:ident => $body:expr) => {
        match $value {
            $crate::Value::Float($array) => $crate::Value::from($body),
            $crate::Value::Int($array) => $crate::Value::from($body),
            $crate::Value::Bool($array) => $crate::Value::from($body),
        }
    };
}
pub(crate) use with_array;

impl Value {
    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Float(array) => array.shape(),
            Self::Int(array) => array.shape(),
            Self::Bool(array) => array.shape(),
        }
    }

    /// Widens a tensor whose data is inline.
    ///
    /// # Errors
    /// [`InterpError`] where the data is in another file or of a 16-bit type.
    pub fn from_tensor(tensor: &Tensor) -> std::result::Result<Self, InterpError> {
        let Tensor { dtype, shape, data } = tensor;
        if let Data::External { location, .. } = data {
            unsupported!("the tensor's data is in the file {location:?}: load the model with its data");
        }
        bounded(shape)?;
        Ok(match dtype {
            DType::F32 | DType::F64 => Self::Float(filled(shape, tensor.as_f64().unwrap_or_default())?),
            DType::I64 | DType::I32 | DType::I8 | DType::U8 => {
                Self::Int(filled(shape, tensor.as_i64().unwrap_or_default())?)
            }
            DType::Bool => {
                let values = tensor.as_i64().unwrap_or_default();
                Self::Bool(filled(shape, values.into_iter().map(|value| value != 0).collect())?)
            }
            DType::F16 | DType::BF16 => unsupported!("tensors of type {dtype:?} cannot be evaluated"),
        })
    }

    /// Narrows to a tensor of `dtype`: real numbers round to the nearest, integers must fit.
    ///
    /// # Errors
    /// [`InterpError`] where `dtype` is of another kind, or an integer does not fit.
    pub fn to_tensor(&self, dtype: DType) -> std::result::Result<Tensor, InterpError> {
        let bytes: Vec<u8> = match (self, dtype) {
            (Self::Float(array), DType::F32) => {
                array.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect()
            }
            (Self::Float(array), DType::F64) => array.iter().flat_map(|value| value.to_le_bytes()).collect(),
            (Self::Int(array), DType::I64) => array.iter().flat_map(|value| value.to_le_bytes()).collect(),
            (Self::Int(array), DType::I32) => narrow(array, i32::to_le_bytes)?,
            (Self::Int(array), DType::I8) => narrow(array, i8::to_le_bytes)?,
            (Self::Int(array), DType::U8) => narrow(array, u8::to_le_bytes)?,
            (Self::Bool(array), DType::Bool) => array.iter().map(|value| u8::from(*value)).collect(),
            _ => invalid!("{} are no {dtype:?} tensor", self.kind()),
        };
        Ok(Tensor { dtype, shape: self.shape().to_vec(), data: Data::Inline(bytes.into()) })
    }

    /// The real numbers.
    ///
    /// # Errors
    /// [`InterpError::Invalid`] where these are none.
    pub fn as_float(&self) -> std::result::Result<&ArrayD<f64>, InterpError> {
        match self {
            Self::Float(array) => Ok(array),
            _ => invalid!("expected real numbers, found {}", self.kind()),
        }
    }

    /// The integers.
    ///
    /// # Errors
    /// [`InterpError::Invalid`] where these are none.
    pub fn as_int(&self) -> std::result::Result<&ArrayD<i64>, InterpError> {
        match self {
            Self::Int(array) => Ok(array),
            _ => invalid!("expected integers, found {}", self.kind()),
        }
    }

    /// The truth values.
    ///
    /// # Errors
    /// [`InterpError::Invalid`] where these are none.
    pub fn as_bool(&self) -> std::result::Result<&ArrayD<bool>, InterpError> {
        match self {
            Self::Bool(array) => Ok(array),
            _ => invalid!("expected truth values, found {}", self.kind()),
        }
    }

    /// What its elements are, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Float(_) => "real numbers",
            Self::Int(_) => "integers",
            Self::Bool(_) => "truth values",
        }
    }
}

fn narrow<T: TryFrom<i64>, const N: usize>(
    array: &ArrayD<i64>,
    to_bytes: fn(T) -> [u8; N],
) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(array.len() * N);
    for value in array {
        match T::try_from(*value) {
            Ok(narrow) => bytes.extend(to_bytes(narrow)),
            Err(_) => invalid!("the integer {value} does not fit into {N} bytes"),
        }
    }
    Ok(bytes)
}

impl From<ArrayD<f64>> for Value {
    fn from(array: ArrayD<f64>) -> Self {
        Self::Float(array)
    }
}
impl From<ArrayD<i64>> for Value {
    fn from(array: ArrayD<i64>) -> Self {
        Self::Int(array)
    }
}
impl From<ArrayD<bool>> for Value {
    fn from(array: ArrayD<bool>) -> Self {
        Self::Bool(array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_the_round_trip() {
        for tensor in [
            Tensor::f32([2], &[1.5, f32::MIN_POSITIVE]),
            Tensor::i64([1, 2], &[i64::MIN, 7]),
            Tensor::bool([2], &[true, false]),
            Tensor::scalar(0.1),
            Tensor::f32([0, 3], &[]),
        ] {
            let value = Value::from_tensor(&tensor).unwrap();
            assert_eq!(value.shape(), tensor.shape);
            assert_eq!(value.to_tensor(tensor.dtype).unwrap(), tensor);
        }
    }

    #[test]
    fn narrowing_refuses_what_does_not_fit() {
        let value = Value::from_tensor(&Tensor::i64([1], &[300])).unwrap();
        assert_eq!(value.to_tensor(DType::I32).unwrap().as_i64().unwrap(), [300]);
        assert!(value.to_tensor(DType::U8).is_err());
        assert!(value.to_tensor(DType::F32).is_err());
    }

    #[test]
    fn external_and_damaged_tensors_are_refused() {
        let mut tensor = Tensor::f32([2], &[1.0, 2.0]);
        tensor.shape = vec![3];
        assert!(!Value::from_tensor(&tensor).unwrap_err().is_unsupported());
        tensor.shape = vec![0, usize::MAX];
        assert!(Value::from_tensor(&tensor).is_err());
        tensor.data = Data::External { location: "w.bin".into(), offset: 0 };
        assert!(Value::from_tensor(&tensor).unwrap_err().is_unsupported());
    }
}
