//! Convolutions over one or two spatial dimensions, as products of matrices.
//!
//! One spatial dimension is two, the first of size 1.

use ndarray::{Array2, Array4, ArrayD, ArrayView2, ArrayView3, ArrayViewMut3, Axis, Ix2, Ix4, Slice};

use super::linear::ranked;
use crate::{
    Value,
    call::Call,
    error::{Result, invalid, unsupported},
    shape::{bounded, reshape, standard},
};

/// How a kernel moves along one spatial dimension.
#[derive(Clone, Copy)]
struct Window {
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// Padding before the first and after the last entry.
    before: usize,
    after: usize,
}

impl Window {
    /// Entries that a kernel spans.
    fn span(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }

    /// How many places the kernel has among `len` entries.
    fn places(&self, len: usize) -> Result<usize> {
        match (len + self.before + self.after).checked_sub(self.span()) {
            Some(room) => Ok(room / self.stride + 1),
            None => invalid!("a kernel of span {} does not fit into {len} entries", self.span()),
        }
    }

    /// The entry under element `k` of the kernel at `place`, unless that is padding.
    fn entry(&self, place: usize, k: usize, len: usize) -> Option<usize> {
        (place * self.stride + k * self.dilation).checked_sub(self.before).filter(|entry| *entry < len)
    }
}

/// What both convolutions read from their node.
struct Setup {
    x: Array4<f64>,
    w: Array4<f64>,
    windows: [Window; 2],
    group: usize,
    spatial: usize,
}

/// Attributes beyond this are refused, so that sums and products of a few of them do not overflow.
const MAX_ATTRIBUTE: usize = 1 << 24;

impl Setup {
    fn read(call: &Call<'_>) -> Result<Self> {
        let (x, w) = (call.float(0)?, call.float(1)?);
        let spatial = match x.ndim() {
            rank @ 3..=4 if w.ndim() == rank => rank - 2,
            3..=4 => invalid!("data {:?} and weights {:?} differ in rank", x.shape(), w.shape()),
            rank => unsupported!("data of {rank} dimensions cannot be convolved, only of 3 or 4"),
        };
        let kernel = w.shape()[2..].to_vec();
        if kernel.contains(&0) {
            invalid!("the kernel {kernel:?} is empty");
        }
        let stated = positive(call, "kernel_shape")?;
        if stated.is_some_and(|stated| stated != kernel) {
            invalid!("attribute \"kernel_shape\" differs from the weights {:?}", w.shape());
        }
        let per_dimension = |name| -> Result<Vec<usize>> {
            let values = positive(call, name)?.unwrap_or_else(|| vec![1; spatial]);
            if values.len() == spatial {
                Ok(values)
            } else {
                invalid!("attribute {name:?} is not {spatial} numbers")
            }
        };
        let (strides, dilations) = (per_dimension("strides")?, per_dimension("dilations")?);
        let windows: Vec<Window> = (0..spatial)
            .map(|i| Window {
                kernel: kernel[i],
                stride: strides[i],
                dilation: dilations[i],
                before: 0,
                after: 0,
            })
            .collect();
        let group = match usize::try_from(call.attr_int("group")?.unwrap_or(1)) {
            Ok(group @ 1..=MAX_ATTRIBUTE) => group,
            _ => invalid!("attribute \"group\" is not positive"),
        };
        let mut padded = windows;
        pad(call, &x.shape()[2..], &mut padded)?;
        let unit = Window { kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 };
        let windows = match padded[..] {
            [width] => [unit, width],
            [height, width] => [height, width],
            _ => invalid!("there are no spatial dimensions"),
        };
        Ok(Self { x: planar(x)?, w: planar(w)?, windows, group, spatial })
    }
}

/// An attribute of positive numbers.
fn positive(call: &Call<'_>, name: &str) -> Result<Option<Vec<usize>>> {
    let Some(values) = call.attr_ints(name)? else { return Ok(None) };
    let valid =
        |value: &i64| usize::try_from(*value).ok().filter(|value| (1..=MAX_ATTRIBUTE).contains(value));
    match values.iter().map(valid).collect() {
        Some(values) => Ok(Some(values)),
        None => invalid!("attribute {name:?} is {values:?}, not all from 1 to {MAX_ATTRIBUTE}"),
    }
}

/// Sets the padding from `pads`, or as `auto_pad` asks for data of shape `lens`.
fn pad(call: &Call<'_>, lens: &[usize], windows: &mut [Window]) -> Result<()> {
    let auto = call.attr_text("auto_pad", "NOTSET")?;
    match auto {
        "VALID" => {}
        "NOTSET" => {
            let Some(pads) = call.attr_ints("pads")? else { return Ok(()) };
            let valid = |pad: &i64| usize::try_from(*pad).ok().filter(|pad| *pad <= MAX_ATTRIBUTE);
            let count = windows.len();
            match pads.iter().map(valid).collect::<Option<Vec<_>>>() {
                Some(pads) if pads.len() == 2 * count => {
                    for (i, window) in windows.iter_mut().enumerate() {
                        (window.before, window.after) = (pads[i], pads[count + i]);
                    }
                }
                _ => invalid!("attribute \"pads\" is {pads:?}, not {} from 0 to {MAX_ATTRIBUTE}", 2 * count),
            }
        }
        "SAME_UPPER" | "SAME_LOWER" => {
            for (window, len) in windows.iter_mut().zip(lens) {
                let places = len.div_ceil(window.stride);
                let reach = places.saturating_sub(1) * window.stride + window.span();
                let total = reach.saturating_sub(*len);
                let (less, more) = (total / 2, total - total / 2);
                (window.before, window.after) =
                    if auto == "SAME_UPPER" { (less, more) } else { (more, less) };
            }
        }
        other => unsupported!("padding {other:?} is not known"),
    }
    Ok(())
}

/// `x` with two spatial dimensions.
fn planar(x: &ArrayD<f64>) -> Result<Array4<f64>> {
    let x = standard(x.clone());
    let x = if x.ndim() == 3 { x.insert_axis(Axis(2)) } else { x };
    Ok(ranked::<Ix4>(x.view())?.to_owned())
}

/// `y` plus one bias per channel, with the spatial dimensions that the data had.
fn finish(call: &Call<'_>, mut y: Array4<f64>, spatial: usize) -> Result<Value> {
    if let Some(bias) = call.maybe_float(2)? {
        if bias.shape() != [y.dim().1] {
            invalid!(
                "the bias has shape {:?}, not one number for each of {} channels",
                bias.shape(),
                y.dim().1
            );
        }
        for (mut channel, bias) in y.axis_iter_mut(Axis(1)).zip(bias) {
            channel += *bias;
        }
    }
    let mut to = y.shape().to_vec();
    if spatial == 1 {
        to.remove(2);
    }
    Ok(Value::Float(reshape(y.into_dyn(), &to)?))
}

pub(super) fn conv(call: &Call<'_>) -> Result<Value> {
    let Setup { x, w, windows, group, spatial } = Setup::read(call)?;
    let ((batch, channels, height, width), (filters, depth, ..)) = (x.dim(), w.dim());
    if depth.checked_mul(group) != Some(channels) || filters % group != 0 {
        invalid!("weights {:?} do not fit {channels} channels in {group} groups", call.float(1)?.shape());
    }
    let places = [windows[0].places(height)?, windows[1].places(width)?];
    bounded(&[batch, filters, places[0], places[1]])?;
    let taps = depth.saturating_mul(windows[0].kernel).saturating_mul(windows[1].kernel);
    bounded(&[taps, places[0], places[1]])?;

    let kernels = flat(w.into_dyn(), filters, taps)?;
    let mut y = Array4::zeros((batch, filters, places[0], places[1]));
    for (image, mut out) in x.outer_iter().zip(y.outer_iter_mut()) {
        for g in 0..group {
            let part = image.slice_axis(Axis(0), nth(g, depth));
            let rows = nth(g, filters / group);
            let product = kernels.slice_axis(Axis(0), rows).dot(&unfold(part, &windows, places));
            let mut planes = out.slice_axis_mut(Axis(0), rows);
            for (mut plane, row) in planes.outer_iter_mut().zip(product.outer_iter()) {
                plane.iter_mut().zip(row).for_each(|(to, from)| *to = *from);
            }
        }
    }
    finish(call, y, spatial)
}

/// One column for each place of the kernel: the entries under it.
fn unfold(x: ArrayView3<'_, f64>, windows: &[Window; 2], places: [usize; 2]) -> Array2<f64> {
    let (channels, height, width) = x.dim();
    let [vertical, horizontal] = windows;
    let (kh, kw) = (vertical.kernel, horizontal.kernel);
    let mut columns = Array2::zeros((channels * kh * kw, places[0] * places[1]));
    for (row, mut taps) in columns.outer_iter_mut().enumerate() {
        let (channel, i, j) = (row / (kh * kw), row / kw % kh, row % kw);
        for (column, tap) in taps.iter_mut().enumerate() {
            let at = (
                vertical.entry(column / places[1], i, height),
                horizontal.entry(column % places[1], j, width),
            );
            if let (Some(y), Some(x_at)) = at {
                *tap = x[[channel, y, x_at]];
            }
        }
    }
    columns
}

pub(super) fn conv_transpose(call: &Call<'_>) -> Result<Value> {
    match call.attr_text("auto_pad", "NOTSET")? {
        "NOTSET" | "VALID" if call.attr_ints("output_shape")?.is_none() => {}
        _ => unsupported!("padding that follows from the shape of the output cannot be evaluated"),
    }
    let Setup { x, w, windows, group, spatial } = Setup::read(call)?;
    let ((batch, channels, height, width), (depth, filters, ..)) = (x.dim(), w.dim());
    if depth != channels || channels % group != 0 {
        invalid!("weights {:?} do not fit {channels} channels in {group} groups", call.float(1)?.shape());
    }
    let extra = match call.attr_ints("output_padding")? {
        None => [0, 0],
        Some([width]) if spatial == 1 => [0, *width],
        Some([height, width]) if spatial == 2 => [*height, *width],
        Some(other) => invalid!("attribute \"output_padding\" is {other:?}"),
    };
    let size = |window: &Window, len: usize, extra: i64| -> Result<usize> {
        let extra = match usize::try_from(extra) {
            Ok(extra @ ..MAX_ATTRIBUTE) => extra,
            _ => invalid!("attribute \"output_padding\" is not from 0 to {MAX_ATTRIBUTE}"),
        };
        let full = len.saturating_sub(1) * window.stride + window.span() + extra;
        match full.checked_sub(window.before + window.after) {
            Some(size) => Ok(size),
            None => invalid!("the padding cuts off more than there is"),
        }
    };
    let out = [size(&windows[0], height, extra[0])?, size(&windows[1], width, extra[1])?];
    bounded(&[batch, filters.saturating_mul(group), out[0], out[1]])?;
    let taps = filters.saturating_mul(windows[0].kernel).saturating_mul(windows[1].kernel);
    bounded(&[taps, height, width])?;

    let kernels = flat(w.into_dyn(), channels, taps)?;
    let mut y = Array4::zeros((batch, filters * group, out[0], out[1]));
    let per_group = channels / group;
    for (image, mut planes) in x.outer_iter().zip(y.outer_iter_mut()) {
        for g in 0..group {
            let rows = nth(g, per_group);
            let part = image.slice_axis(Axis(0), rows).to_owned().into_dyn();
            let part = flat(part, per_group, height * width)?;
            let columns = kernels.slice_axis(Axis(0), rows).t().dot(&part);
            let target = planes.slice_axis_mut(Axis(0), nth(g, filters));
            fold(columns.view(), target, &windows, width);
        }
    }
    finish(call, y, spatial)
}

/// The reverse of [`unfold`]: adds every column to the entries under its place of the kernel.
fn fold(columns: ArrayView2<'_, f64>, mut y: ArrayViewMut3<'_, f64>, windows: &[Window; 2], places: usize) {
    let (_, height, width) = y.dim();
    let [vertical, horizontal] = windows;
    let (kh, kw) = (vertical.kernel, horizontal.kernel);
    for ((row, column), tap) in columns.indexed_iter() {
        let (channel, i, j) = (row / (kh * kw), row / kw % kh, row % kw);
        let at = (vertical.entry(column / places, i, height), horizontal.entry(column % places, j, width));
        if let (Some(y_at), Some(x_at)) = at {
            y[[channel, y_at, x_at]] += tap;
        }
    }
}

/// The `n`th run of `len` entries.
fn nth(n: usize, len: usize) -> Slice {
    Slice::from(n * len..(n + 1) * len)
}

/// The same elements as a matrix.
fn flat(x: ArrayD<f64>, rows: usize, columns: usize) -> Result<Array2<f64>> {
    let matrix = reshape(x, &[rows, columns])?;
    Ok(ranked::<Ix2>(matrix.view())?.to_owned())
}
