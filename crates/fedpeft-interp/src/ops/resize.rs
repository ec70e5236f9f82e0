//! Resizing as a product with one matrix per axis.

use ndarray::{Array2, ArrayD, Ix2};

use super::linear::ranked;
use crate::{
    InterpError, Value,
    call::Call,
    error::{Result, invalid, unsupported},
    shape::{MAX_ELEMENTS, axes, bounded, reshape, sizes, standard},
};

/// How an entry of the output is made from entries of the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Interpolation {
    /// From the one that is nearest.
    Nearest(Nearest),
    /// From two, on the line between them.
    Linear,
    /// From four, on a cubic curve.
    Cubic {
        /// The coefficient `a` of the curve.
        a: f64,
    },
}

/// Which entry is nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nearest {
    /// The closer; of two as close, the lower.
    RoundPreferFloor,
    /// The closer; of two as close, the higher.
    RoundPreferCeil,
    /// The lower.
    Floor,
    /// The higher.
    Ceil,
}

/// Where in the input an entry of the output lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coordinates {
    /// Entries are cells, and the outer edges of both lie on each other.
    HalfPixel,
    /// The same, except that a single entry is made from the first.
    PytorchHalfPixel,
    /// Entries are points, and the outermost points of both lie on each other.
    AlignCorners,
    /// Entries are points, and the first ones lie on each other.
    Asymmetric,
}

impl Coordinates {
    fn source(self, at: usize, input: usize, output: usize, scale: f64, round: fn(f64) -> f64) -> f64 {
        let at = at as f64;
        let half_pixel = || round(round((at + 0.5) / scale) - 0.5);
        match self {
            Self::HalfPixel => half_pixel(),
            Self::PytorchHalfPixel if output > 1 => half_pixel(),
            Self::AlignCorners if output > 1 => {
                round(round(at * (input as f64 - 1.0)) / (output as f64 - 1.0))
            }
            Self::PytorchHalfPixel | Self::AlignCorners => 0.0,
            Self::Asymmetric => round(at / scale),
        }
    }
}

/// The matrix, of shape `[output, input]`, that resizes one axis from `input` to `output` entries. `scale` is
/// what the node says, or `output / input` where it gives sizes; a scale of 1 leaves the axis as it is.
///
/// # Errors
/// [`InterpError::Invalid`] where an axis is empty, the scale is not positive, or the matrix is too large.
pub fn resize_matrix(
    input: usize,
    output: usize,
    scale: f64,
    interpolation: Interpolation,
    coordinates: Coordinates,
) -> std::result::Result<Array2<f64>, InterpError> {
    if input == 0 || output == 0 || !(scale > 0.0 && scale.is_finite()) {
        invalid!("{input} entries do not resize to {output} by {scale}");
    }
    bounded(&[output, input])?;
    // Which entry is nearest may hang on a rounding error: the same one as in runtimes, which compute
    // coordinates in single precision. Elsewhere coordinates are exact.
    let round: fn(f64) -> f64 = match interpolation {
        Interpolation::Nearest(_) => |x| f64::from(x as f32),
        Interpolation::Linear | Interpolation::Cubic { .. } => |x| x,
    };
    let scale = round(scale);
    let mut matrix = Array2::zeros((output, input));
    for (at, mut row) in matrix.outer_iter_mut().enumerate() {
        for (entry, weight) in taps(coordinates.source(at, input, output, scale, round), interpolation) {
            // Beyond the edges, the outermost entries continue.
            row[entry.clamp(0, input as i64 - 1) as usize] += weight;
        }
    }
    Ok(matrix)
}

/// The entries that a point of the input is made from, with their weights.
fn taps(source: f64, interpolation: Interpolation) -> Vec<(i64, f64)> {
    let below = source.floor();
    let (first, t) = (below as i64, source - below);
    match interpolation {
        Interpolation::Nearest(nearest) => {
            let entry = match nearest {
                Nearest::RoundPreferFloor => (source - 0.5).ceil(),
                Nearest::RoundPreferCeil => (source + 0.5).floor(),
                Nearest::Floor => source.floor(),
                Nearest::Ceil => source.ceil(),
            };
            vec![(entry as i64, 1.0)]
        }
        Interpolation::Linear => vec![(first, 1.0 - t), (first + 1, t)],
        Interpolation::Cubic { a } => {
            let near = |d: f64| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
            let far = |d: f64| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
            vec![
                (first - 1, far(1.0 + t)),
                (first, near(t)),
                (first + 1, near(1.0 - t)),
                (first + 2, far(2.0 - t)),
            ]
        }
    }
}

pub(super) fn resize(call: &Call<'_>) -> Result<Value> {
    let x = call.float(0)?;
    let (interpolation, coordinates) = method(call)?;
    let targets = targets(call, x.shape())?;
    let mut y = standard(x.clone());
    // As in runtimes: what keeps its shape is kept, whatever the scales.
    if targets.iter().map(|(output, _)| output).eq(x.shape()) {
        return Ok(Value::Float(y));
    }
    for (axis, (output, scale)) in targets.into_iter().enumerate() {
        let input = x.shape()[axis];
        if scale == 1.0 && input == output {
            continue;
        }
        let matrix = resize_matrix(input, output, scale, interpolation, coordinates)?;
        y = along(&y, axis, &matrix)?;
    }
    Ok(Value::Float(y))
}

/// `matrix` times each lane of `x` along `axis`.
fn along(x: &ArrayD<f64>, axis: usize, matrix: &Array2<f64>) -> Result<ArrayD<f64>> {
    let mut last = x.view();
    let end = x.ndim() - 1;
    last.swap_axes(axis, end);
    let mut to = last.shape().to_vec();
    let input = std::mem::replace(&mut to[end], matrix.nrows());
    bounded(&to)?;
    let rows = to[..end].iter().product();
    let lanes = reshape(last.to_owned(), &[rows, input])?;
    let resized = ranked::<Ix2>(lanes.view())?.dot(&matrix.t());
    let mut resized = reshape(resized.into_dyn(), &to)?;
    resized.swap_axes(axis, end);
    Ok(standard(resized))
}

fn method(call: &Call<'_>) -> Result<(Interpolation, Coordinates)> {
    if call.attr_flag("antialias", false)? || call.attr_flag("exclude_outside", false)? {
        unsupported!("antialiasing and the exclusion of what is outside cannot be evaluated");
    }
    let policy = call.attr_text("keep_aspect_ratio_policy", "stretch")?;
    if policy != "stretch" {
        unsupported!("aspect ratio policy {policy:?} cannot be evaluated");
    }
    let interpolation = match call.attr_text("mode", "nearest")? {
        "nearest" => Interpolation::Nearest(match call.attr_text("nearest_mode", "round_prefer_floor")? {
            "round_prefer_floor" => Nearest::RoundPreferFloor,
            "round_prefer_ceil" => Nearest::RoundPreferCeil,
            "floor" => Nearest::Floor,
            "ceil" => Nearest::Ceil,
            other => unsupported!("nearest mode {other:?} is not known"),
        }),
        "linear" => Interpolation::Linear,
        "cubic" => Interpolation::Cubic { a: call.attr_float("cubic_coeff_a", -0.75)? },
        other => unsupported!("mode {other:?} is not known"),
    };
    let coordinates = match call.attr_text("coordinate_transformation_mode", "half_pixel")? {
        "half_pixel" => Coordinates::HalfPixel,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        other => unsupported!("coordinate transformation {other:?} cannot be evaluated"),
    };
    Ok((interpolation, coordinates))
}

/// The new size and the scale of every axis.
fn targets(call: &Call<'_>, shape: &[usize]) -> Result<Vec<(usize, f64)>> {
    let on = match call.attr_ints("axes")? {
        Some(list) => axes(list, shape.len())?,
        None => (0..shape.len()).collect(),
    };
    let mut targets: Vec<(usize, f64)> = shape.iter().map(|dim| (*dim, 1.0)).collect();
    // Exporters leave the input they do not use empty instead of absent.
    let scales = call.maybe_float(2)?.filter(|scales| !scales.is_empty());
    let wanted = call.maybe_list(3)?.filter(|sizes| !sizes.is_empty());
    let count = match (scales, &wanted) {
        (Some(scales), None) => scales.len(),
        (None, Some(wanted)) => wanted.len(),
        _ => invalid!("exactly one of the inputs \"scales\" and \"sizes\" must be there"),
    };
    if count != on.len() {
        invalid!("{count} scales or sizes do not fit {} axes", on.len());
    }
    if let Some(scales) = scales {
        for (axis, scale) in on.iter().zip(scales) {
            let size = (shape[*axis] as f64 * scale).floor();
            if !(0.0..=MAX_ELEMENTS as f64).contains(&size) {
                invalid!("scale {scale} of {} entries is too large, or negative", shape[*axis]);
            }
            targets[*axis] = (size as usize, *scale);
        }
    } else {
        for (axis, size) in on.iter().zip(sizes(&wanted.unwrap_or_default())?) {
            targets[*axis] = (size, size as f64 / shape[*axis] as f64);
        }
    }
    Ok(targets)
}
