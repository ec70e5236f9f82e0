//! Conversions between element types.

use fedpeft_onnx::DType;

use crate::{
    Value,
    call::Call,
    error::{Result, invalid, unsupported},
};

/// Real numbers stay exact whatever their width; integers wrap to theirs.
pub(super) fn cast(call: &Call<'_>) -> Result<Value> {
    let Some(to) = call.attr_int("to")? else { invalid!("attribute \"to\" is missing") };
    let Some(to) = i32::try_from(to).ok().and_then(DType::from_code) else {
        unsupported!("element type {to} cannot be evaluated");
    };
    let value = call.value(0)?;
    Ok(match to {
        DType::F32 | DType::F64 => Value::Float(match value {
            Value::Float(x) => x.clone(),
            Value::Int(x) => x.mapv(|x| x as f64),
            Value::Bool(x) => x.mapv(|x| f64::from(u8::from(x))),
        }),
        DType::I64 | DType::I32 | DType::I8 | DType::U8 => {
            let wrap = match to {
                DType::I32 => |x: i64| i64::from(x as i32),
                DType::I8 => |x: i64| i64::from(x as i8),
                DType::U8 => |x: i64| i64::from(x as u8),
                _ => |x: i64| x,
            };
            Value::Int(match value {
                Value::Float(x) => x.mapv(|x| wrap(x as i64)),
                Value::Int(x) => x.mapv(wrap),
                Value::Bool(x) => x.mapv(i64::from),
            })
        }
        DType::Bool => Value::Bool(match value {
            Value::Float(x) => x.mapv(|x| x != 0.0),
            Value::Int(x) => x.mapv(|x| x != 0),
            Value::Bool(x) => x.clone(),
        }),
        DType::F16 | DType::BF16 => unsupported!("values of type {to:?} cannot be evaluated"),
    })
}
