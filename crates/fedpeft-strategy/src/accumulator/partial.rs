//! Partial sums on their way from an edge to the aggregator above it.
//!
//! A value of the sum is an integer, `high x 2^47 + low` in units of 2^-54, and travels as that one integer. How it is
//! split does not matter to the mean; here it is split so that the bounds of the fixed point hold whoever added it up.
//!
//! ```text
//! sum    = block*                        256 values each, the last may be shorter
//! block  = shift:u8 width:u8 packed      packed: `width` bits for each value, least significant first, to whole bytes
//! value  = signed integer of `width` bits << shift
//! ```
//!
//! Adapter values have 24 significant bits, and those of one tensor are of similar size, so that a block needs some
//! 40 to 50 bits a value where two plain integers take 128. Nothing is rounded.

use std::io::{self, BufReader, BufWriter, Read, Write};

use fedpeft_codec::Layout;

use super::{AccumulateError, Accumulator, MAX_UPDATES, MAX_WEIGHT, Spool, SpoolError, within_bound};

/// Values in a block.
const BLOCK: usize = 256;
/// Bits of the low half.
const LOW_BITS: u32 = 47;
/// Bits of the largest magnitude over the weight: 2^16, in units of 2^-54.
const MAGNITUDE_BITS: u32 = 70;
/// Bits of the largest value: 2^40 - 2^24 of weight at the largest magnitude, and a sign.
const MAX_WIDTH: u32 = 40 + MAGNITUDE_BITS + 1;
/// Bytes read or written at once.
const BUFFER: usize = 1 << 18;

/// What a partial sum is said to be: so many updates of so much weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    updates: u64,
    weight: u64,
}

impl Claim {
    /// Checks that so many updates can have so much weight.
    ///
    /// # Errors
    /// No updates, too many for one sum, or a weight that they cannot have.
    pub fn new(updates: u64, weight: u64) -> Result<Self, AccumulateError> {
        let possible = (1..=MAX_UPDATES).contains(&updates)
            && (updates..=updates.saturating_mul(MAX_WEIGHT)).contains(&weight);
        if possible { Ok(Self { updates, weight }) } else { Err(AccumulateError::Claim { updates, weight }) }
    }

    /// Updates in the sum.
    pub fn updates(self) -> u64 {
        self.updates
    }

    /// Their weight.
    pub fn weight(self) -> u64 {
        self.weight
    }

    /// The largest magnitude that a value of the sum can have.
    fn bound(self) -> u128 {
        u128::from(self.weight) << MAGNITUDE_BITS
    }
}

/// Most bytes that a partial sum over `layout` takes.
pub fn max_partial_bytes(layout: &Layout) -> u64 {
    let values = layout.values() as u64;
    // Each block may end within a byte.
    values.div_ceil(BLOCK as u64) * 3 + (values * u64::from(MAX_WIDTH)).div_ceil(8)
}

/// The L2 distance between the mean of a partial sum and an encoded adapter: where every update of the sum is within
/// some distance, so is their mean. Checks the sum as [`Accumulator::merge_partial`] does.
///
/// # Errors
/// A sum that would not be merged; a file that cannot be read.
pub fn partial_distance(
    partial: &mut dyn Spool,
    layout: &Layout,
    claim: Claim,
    base: &mut dyn Spool,
) -> Result<f64, SpoolError> {
    base.rewind()?;
    let (mut base, mut squares) = (BufReader::with_capacity(BUFFER, base), 0.0);
    let unit = (1u128 << MAGNITUDE_BITS >> 16) as f64 * claim.weight as f64;
    each_block(partial, layout, claim, |_, values| {
        for value in values {
            let mut bytes = [0; 4];
            base.read_exact(&mut bytes)?;
            let difference = *value as f64 / unit - f64::from(f32::from_le_bytes(bytes));
            squares += difference * difference;
        }
        Ok(())
    })?;
    Ok(squares.sqrt())
}

impl Accumulator {
    /// What the sum claims to be.
    ///
    /// # Errors
    /// An empty sum, or one that has lost its meaning.
    pub fn claim(&self) -> Result<Claim, AccumulateError> {
        self.usable()?;
        Claim::new(self.updates, self.weight)
    }

    /// Writes the sum for another aggregator to merge. Equal sums give equal bytes, however they came about.
    ///
    /// # Errors
    /// An empty sum; a file that cannot be written.
    pub fn write_partial(&self, out: &mut dyn Write) -> Result<(), SpoolError> {
        self.usable()?;
        let mut out = BufWriter::with_capacity(BUFFER, out);
        let (mut values, mut packed) = (Vec::with_capacity(BLOCK), Vec::new());
        for (high, low) in self.high.chunks(BLOCK).zip(self.low.chunks(BLOCK)) {
            let joined =
                high.iter().zip(low).map(|(high, low)| (i128::from(*high) << LOW_BITS) + i128::from(*low));
            values.clear();
            values.extend(joined);
            packed.clear();
            pack(&values, &mut packed);
            out.write_all(&packed)?;
        }
        Ok(out.flush()?)
    }

    /// Adds a sum that [`Self::write_partial`] wrote elsewhere. It is read twice from its first byte: to check it, then to
    /// add it. Either all of it is added or, with an error, nothing; only when reading fails the second time is the sum
    /// spoilt, and says so whenever it is used.
    ///
    /// # Errors
    /// Too many updates in all; bytes that are no sum over this layout; a value that no updates of this weight have; a
    /// file that cannot be read.
    pub fn merge_partial(&mut self, partial: &mut dyn Spool, claim: Claim) -> Result<(), SpoolError> {
        if self.spoilt {
            return Err(AccumulateError::Spoilt.into());
        }
        let updates = within_bound(self.updates + claim.updates)?;
        each_block(partial, &self.layout, claim, |_, _| Ok(()))?;
        self.spoilt = true;
        let (high, low) = (&mut self.high, &mut self.low);
        each_block(partial, &self.layout, claim, |first, values| {
            let sums = high[first..].iter_mut().zip(&mut low[first..]);
            for ((high, low), value) in sums.zip(values) {
                let (more, rest) = split(*value);
                *high += more;
                *low += rest;
            }
            Ok(())
        })?;
        self.spoilt = false;
        self.updates = updates;
        self.weight += claim.weight;
        Ok(())
    }
}

/// The halves of a value: the low one of at most 2^46 in magnitude, as that of a single update is, and the high one of at
/// most 2^47 for each update.
fn split(value: i128) -> (i64, i64) {
    let high = (value + (1 << (LOW_BITS - 1))) >> LOW_BITS;
    let low = value - (high << LOW_BITS);
    // Checked to be below 2^110.
    (high as i64, low as i64)
}

/// Appends a block.
fn pack(values: &[i128], packed: &mut Vec<u8>) {
    // The first bit that any value has, and the last: those of a negative one repeat its sign.
    let (mut any, mut magnitudes) = (0u128, 0u128);
    for value in values {
        any |= value.cast_unsigned();
        magnitudes |= (*value ^ (*value >> 127)).cast_unsigned();
    }
    if any == 0 {
        return packed.extend([0, 0]);
    }
    let shift = any.trailing_zeros();
    let width = (u128::BITS - magnitudes.leading_zeros() + 1).saturating_sub(shift).max(1);
    packed.extend([shift as u8, width as u8]);
    let mask = (1u128 << width) - 1;
    let (mut bits, mut filled) = (0u128, 0);
    for value in values {
        bits |= ((*value >> shift).cast_unsigned() & mask) << filled;
        filled += width;
        while filled >= 8 {
            packed.push(bits as u8);
            bits >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        packed.push(bits as u8);
    }
}

/// Takes a block apart.
fn unpack(packed: &[u8], shift: u32, width: u32, values: &mut [i128]) {
    let mut bytes = packed.iter();
    let (mut bits, mut filled) = (0u128, 0);
    for value in values {
        while filled < width {
            bits |= u128::from(bytes.next().copied().unwrap_or(0)) << filled;
            filled += 8;
        }
        // Sign and all.
        let unused = u128::BITS - width;
        *value = (bits << unused).cast_signed() >> unused << shift;
        bits >>= width;
        filled -= width;
    }
}

/// Reads a sum from its first byte to its last. `each` gets the values of a block, all within what `claim` allows, and the
/// index of their first one.
fn each_block(
    partial: &mut dyn Spool,
    layout: &Layout,
    claim: Claim,
    mut each: impl FnMut(usize, &[i128]) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    partial.rewind()?;
    let mut partial = BufReader::with_capacity(BUFFER, partial);
    let (mut values, mut packed) = ([0i128; BLOCK], Vec::new());
    let (bound, count) = (claim.bound(), layout.values());
    for first in (0..count).step_by(BLOCK) {
        let values = &mut values[..(count - first).min(BLOCK)];
        let mut head = [0; 2];
        fill(&mut partial, &mut head)?;
        let (shift, width) = (u32::from(head[0]), u32::from(head[1]));
        if shift + width > MAX_WIDTH {
            return Err(AccumulateError::Partial("a block of it has more bits than any sum").into());
        }
        values.fill(0);
        if width > 0 {
            packed.resize((values.len() * width as usize).div_ceil(8), 0);
            fill(&mut partial, &mut packed)?;
            unpack(&packed, shift, width, values);
        }
        if let Some(at) = values.iter().position(|value| value.unsigned_abs() > bound) {
            let (tensor, index) = layout.locate(first + at);
            let (tensor, weight) = (tensor.to_owned(), claim.weight);
            return Err(AccumulateError::PartialValue { tensor, index, weight }.into());
        }
        each(first, values)?;
    }
    match partial.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(AccumulateError::Partial("it goes on after its last value").into()),
    }
}

/// Reads all of `bytes`, or says that the sum ends before.
fn fill(partial: &mut impl Read, bytes: &mut [u8]) -> Result<(), SpoolError> {
    partial.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => AccumulateError::Partial("it ends before its last value").into(),
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests;
