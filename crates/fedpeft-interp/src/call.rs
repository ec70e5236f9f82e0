//! One application of an operator: its node, and the values it reads.

use fedpeft_onnx::{Attribute, Node, Tensor};
use ndarray::ArrayD;

use crate::{
    Value,
    error::{Result, invalid},
};

/// A node together with its inputs. Every accessor checks what the node claims.
pub(crate) struct Call<'a> {
    pub node: &'a Node,
    pub inputs: &'a [Option<&'a Value>],
}

impl<'a> Call<'a> {
    /// Input `index`, if present.
    pub fn maybe(&self, index: usize) -> Option<&'a Value> {
        self.inputs.get(index).copied().flatten()
    }

    /// Input `index`.
    pub fn value(&self, index: usize) -> Result<&'a Value> {
        match self.maybe(index) {
            Some(value) => Ok(value),
            None => invalid!("input {index} is missing"),
        }
    }

    /// All inputs; one at least, and none absent.
    pub fn values(&self) -> Result<Vec<&'a Value>> {
        (0..self.inputs.len().max(1)).map(|index| self.value(index)).collect()
    }

    /// Input `index`, of real numbers.
    pub fn float(&self, index: usize) -> Result<&'a ArrayD<f64>> {
        self.value(index)?.as_float()
    }

    /// Input `index`, of real numbers, if present.
    pub fn maybe_float(&self, index: usize) -> Result<Option<&'a ArrayD<f64>>> {
        self.maybe(index).map(Value::as_float).transpose()
    }

    /// Input `index`, of integers.
    pub fn int(&self, index: usize) -> Result<&'a ArrayD<i64>> {
        self.value(index)?.as_int()
    }

    /// Input `index`, a list of integers.
    pub fn list(&self, index: usize) -> Result<Vec<i64>> {
        Ok(self.int(index)?.iter().copied().collect())
    }

    /// Input `index`, a list of integers, if present.
    pub fn maybe_list(&self, index: usize) -> Result<Option<Vec<i64>>> {
        self.maybe(index).map(|_| self.list(index)).transpose()
    }

    /// Input `index`, one integer.
    pub fn scalar_int(&self, index: usize) -> Result<i64> {
        scalar(self.int(index)?)
    }

    /// Input `index`, one real number.
    pub fn scalar_float(&self, index: usize) -> Result<f64> {
        scalar(self.float(index)?)
    }

    /// Integer attribute.
    pub fn attr_int(&self, name: &str) -> Result<Option<i64>> {
        match self.node.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Int(value)) => Ok(Some(*value)),
            Some(_) => invalid!("attribute {name:?} is no integer"),
        }
    }

    /// Attribute that is 0 or 1.
    pub fn attr_flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.attr_int(name)?.map_or(default, |value| value != 0))
    }

    /// Attribute of integers.
    pub fn attr_ints(&self, name: &str) -> Result<Option<&'a [i64]>> {
        match self.node.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            Some(_) => invalid!("attribute {name:?} is no list of integers"),
        }
    }

    /// Real attribute.
    pub fn attr_float(&self, name: &str, default: f64) -> Result<f64> {
        match self.node.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Float(value)) => Ok(f64::from(*value)),
            Some(_) => invalid!("attribute {name:?} is no real number"),
        }
    }

    /// Text attribute.
    pub fn attr_text(&self, name: &str, default: &'static str) -> Result<&'a str> {
        match self.node.attributes.get(name) {
            None => Ok(default),
            Some(_) => match self.node.text(name) {
                Some(text) => Ok(text),
                None => invalid!("attribute {name:?} is no text"),
            },
        }
    }

    /// Tensor attribute.
    pub fn attr_tensor(&self, name: &str) -> Result<Option<&'a Tensor>> {
        match self.node.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Tensor(tensor)) => Ok(Some(tensor)),
            Some(_) => invalid!("attribute {name:?} is no tensor"),
        }
    }
}

/// The element of an array that has just one.
pub(crate) fn scalar<T: Copy>(array: &ArrayD<T>) -> Result<T> {
    match (array.first(), array.len()) {
        (Some(value), 1) => Ok(*value),
        _ => invalid!("expected one element, found shape {:?}", array.shape()),
    }
}
