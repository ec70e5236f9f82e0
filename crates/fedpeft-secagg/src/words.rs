//! A vector of integers modulo 2^bits: masks go straight onto it, and its packed form is what travels.

use std::borrow::Cow;

use bytemuck::Pod;
use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit, StreamCipher},
};
use zeroize::Zeroize;

use crate::keys::{CryptoError, StreamKey};

/// Which way a mask goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Onto the values.
    Add,
    /// Off them.
    Subtract,
}

/// Integers modulo `2^bits`, in memory as modulo 2^32 for up to 32 bits and modulo 2^64 for more. The bits above `bits`
/// are noise until the words are packed or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    bits: u8,
    lanes: Lanes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Lanes {
    Narrow(Vec<u32>),
    Wide(Vec<u64>),
}

/// Does `$body` with the vector of either width.
macro_rules! either {
    ($lanes:expr, $vector:ident => $body:expr) => {
        match $lanes {
            Lanes::Narrow($vector) => $body,
            Lanes::Wide($vector) => $body,
        }
    };
}

impl Words {
    /// `len` zeros of `bits` (8 to 56) bits.
    pub fn zeros(bits: u8, len: usize) -> Self {
        let lanes = if bits <= 32 { Lanes::Narrow(vec![0; len]) } else { Lanes::Wide(vec![0; len]) };
        Self { bits, lanes }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        either!(&self.lanes, words => words.len())
    }

    /// Bits of each.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Bytes of `len` packed words of `bits` bits.
    pub fn packed_len(bits: u8, len: usize) -> usize {
        (len * bits as usize).div_ceil(8)
    }

    /// Sets the word at `at` to `value` modulo `2^bits`.
    pub fn set(&mut self, at: usize, value: i64) {
        match &mut self.lanes {
            Lanes::Narrow(words) => words[at] = value as u32,
            Lanes::Wide(words) => words[at] = value as u64,
        }
    }

    /// The integers in `[-2^(bits - 1), 2^(bits - 1))` that the words are modulo `2^bits`.
    pub fn integers(&self) -> impl Iterator<Item = i64> + '_ {
        let shift = 64 - u32::from(self.bits);
        (0..self.len()).map(move |at| {
            let word = match &self.lanes {
                Lanes::Narrow(words) => u64::from(words[at]),
                Lanes::Wide(words) => words[at],
            };
            (word << shift) as i64 >> shift
        })
    }

    /// Adds or subtracts the ChaCha20 stream of `key`: one 32- or 64-bit little-endian word of it for each of ours.
    pub fn mask(&mut self, key: &StreamKey, sign: Sign) -> Result<(), CryptoError> {
        either!(&mut self.lanes, words => mask(words, key, sign))
    }

    /// Clears the bits above `bits`, so that equal words are equal bytes.
    pub fn reduce(&mut self) {
        let bits = self.bits;
        either!(&mut self.lanes, words => reduce(words, bits));
    }

    /// Adds words of the same number and bits.
    pub fn add(&mut self, other: &Self) {
        match (&mut self.lanes, &other.lanes) {
            (Lanes::Narrow(words), Lanes::Narrow(others)) => add(words, others),
            (Lanes::Wide(words), Lanes::Wide(others)) => add(words, others),
            (Lanes::Narrow(_), Lanes::Wide(_)) | (Lanes::Wide(_), Lanes::Narrow(_)) => {}
        }
    }

    /// Adds words that were packed, without unpacking them elsewhere first. `packed` must have the
    /// [length](Self::packed_len) of these words; whether it has is returned.
    #[must_use]
    pub fn add_packed(&mut self, packed: &[u8]) -> bool {
        let bits = self.bits;
        let fits = packed.len() == Self::packed_len(bits, self.len());
        if fits {
            either!(&mut self.lanes, words => add_packed(words, packed, bits));
        }
        fits
    }

    /// The words as they travel: `bits` bits each, little-endian, one after the other, the last byte filled up with zeros.
    /// Words of 32 bits travel as they lie in a little-endian machine's memory.
    pub fn pack(&self) -> Cow<'_, [u8]> {
        match &self.lanes {
            Lanes::Narrow(words) if self.bits == 32 && cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(words))
            }
            lanes => Cow::Owned(either!(lanes, words => pack(words, self.bits))),
        }
    }
}

/// A machine word.
trait Lane: Pod + Into<u64> {
    fn of(word: u64) -> Self;
    fn of_stream(self) -> Self;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
}

macro_rules! lane {
    ($lane:ty) => {
        impl Lane for $lane {
            fn of(word: u64) -> Self {
                word as Self
            }
            fn of_stream(self) -> Self {
                Self::from_le(self)
            }
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    };
}
lane!(u32);
lane!(u64);

/// Bytes of the stream that are made at once: they stay in the first-level cache until they are added.
const PIECE: usize = 8192;

fn mask<L: Lane>(words: &mut [L], key: &StreamKey, sign: Sign) -> Result<(), CryptoError> {
    // The key is used for this one stream only, so the nonce may be constant.
    let mut cipher = ChaCha20::new(key.bytes().into(), &[0; 12].into());
    let mut stream = [0u64; PIECE / 8];
    for piece in words.chunks_mut(PIECE / size_of::<L>()) {
        let stream: &mut [L] = &mut bytemuck::cast_slice_mut(&mut stream)[..piece.len()];
        cipher.try_write_keystream(bytemuck::cast_slice_mut(stream)).map_err(|_| CryptoError::Stream)?;
        match sign {
            Sign::Add => {
                piece.iter_mut().zip(stream).for_each(|(word, mask)| *word = word.plus(mask.of_stream()));
            }
            Sign::Subtract => {
                piece.iter_mut().zip(stream).for_each(|(word, mask)| *word = word.minus(mask.of_stream()));
            }
        }
    }
    stream.zeroize();
    Ok(())
}

fn reduce<L: Lane>(words: &mut [L], bits: u8) {
    words.iter_mut().for_each(|word| *word = L::of((*word).into() & ((1 << bits) - 1)));
}

fn add<L: Lane>(words: &mut [L], others: &[L]) {
    words.iter_mut().zip(others).for_each(|(word, other)| *word = word.plus(*other));
}

fn pack<L: Lane>(words: &[L], bits: u8) -> Vec<u8> {
    let mut packed = Vec::with_capacity(Words::packed_len(bits, words.len()));
    let whole = usize::from(bits / 8);
    if bits.is_multiple_of(8) {
        words.iter().for_each(|word| packed.extend_from_slice(&(*word).into().to_le_bytes()[..whole]));
        return packed;
    }
    // Fewer than 8 bits wait for a word of at most 55, so 64 are enough.
    let (mut waiting, mut waits) = (0u64, 0u32);
    for word in words {
        let word: u64 = (*word).into() & ((1 << bits) - 1);
        waiting |= word << waits;
        waits += u32::from(bits);
        let full = waits as usize / 8;
        packed.extend_from_slice(&waiting.to_le_bytes()[..full]);
        waiting >>= full * 8;
        waits %= 8;
    }
    if waits > 0 {
        packed.push(waiting as u8);
    }
    packed
}

fn add_packed<L: Lane>(words: &mut [L], packed: &[u8], bits: u8) {
    if bits.is_multiple_of(8) {
        let size = usize::from(bits / 8);
        for (word, bytes) in words.iter_mut().zip(packed.chunks_exact(size)) {
            let mut le = [0; 8];
            le[..size].copy_from_slice(bytes);
            *word = word.plus(L::of(u64::from_le_bytes(le)));
        }
        return;
    }
    let (mut waiting, mut waits) = (0u64, 0u32);
    let mut bytes = packed.iter();
    for word in words {
        while waits < u32::from(bits) {
            waiting |= u64::from(bytes.next().copied().unwrap_or(0)) << waits;
            waits += 8;
        }
        *word = word.plus(L::of(waiting & ((1 << bits) - 1)));
        waiting >>= bits;
        waits -= u32::from(bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_words_come_back(bits in 8u8..=56, values in prop::collection::vec(any::<i64>(), 0..70)) {
            let mut words = Words::zeros(bits, values.len());
            let shift = 64 - u32::from(bits);
            let values: Vec<i64> = values.iter().map(|value| value << shift >> shift).collect();
            values.iter().enumerate().for_each(|(at, value)| words.set(at, *value));
            let packed = words.pack().into_owned();
            prop_assert_eq!(packed.len(), Words::packed_len(bits, values.len()));
            let mut back = Words::zeros(bits, values.len());
            prop_assert!(back.add_packed(&packed));
            prop_assert_eq!(back.integers().collect::<Vec<_>>(), &values[..]);
            // Twice is the double, modulo 2^bits.
            prop_assert!(back.add_packed(&packed));
            let doubles = values.iter().map(|value| value.wrapping_mul(2) << shift >> shift);
            prop_assert_eq!(back.integers().collect::<Vec<_>>(), doubles.collect::<Vec<_>>());
            prop_assert!(!back.add_packed(&[&packed[..], &[0]].concat()));
        }

        #[test]
        fn a_mask_comes_off(bits in 8u8..=56, len in 0usize..5000, key: [u8; 32]) {
            let key = StreamKey::from(key);
            let mut words = Words::zeros(bits, len);
            words.mask(&key, Sign::Add).unwrap();
            words.mask(&key, Sign::Subtract).unwrap();
            prop_assert_eq!(words, Words::zeros(bits, len));
        }
    }

    #[test]
    fn bits_lie_one_after_the_other() {
        let mut words = Words::zeros(12, 3);
        [0xabc, 0x123, -1].into_iter().enumerate().for_each(|(at, value)| words.set(at, value));
        assert_eq!(*words.pack(), [0xbc, 0x3a, 0x12, 0xff, 0x0f]);
    }

    #[test]
    fn words_of_32_bits_are_not_copied() {
        let words = Words::zeros(32, 4);
        assert!(!cfg!(target_endian = "little") || matches!(words.pack(), Cow::Borrowed(_)));
    }

    /// RFC 8439, section 2.3.2 has nonce and counter of its own, so the vector is that of appendix A.1, test vector 1
    /// and 2: key and nonce zero, blocks 0 and 1.
    #[test]
    fn the_stream_is_that_of_rfc_8439() {
        let mut words = Words::zeros(32, 32);
        words.mask(&StreamKey::from([0; 32]), Sign::Add).unwrap();
        let expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7\
                        da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586\
                        9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed\
                        29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f";
        assert_eq!(hex::encode(words.pack()), expected);
        let mut wide = Words::zeros(56, 16);
        wide.mask(&StreamKey::from([0; 32]), Sign::Add).unwrap();
        assert_eq!(hex::encode(&wide.pack()[..7]), expected[..14]);
    }
}
