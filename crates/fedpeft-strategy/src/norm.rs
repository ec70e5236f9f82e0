//! How far an update went.

/// Independent sums, so that they can be added in vectors; their number is fixed, and with it every result.
const LANES: usize = 8;

/// The L2 distance of two encoded adapters of one length, in `f64`; NaN if a value is.
pub fn distance(adapter: &[u8], base: &[u8]) -> f64 {
    let (adapter, base) = (adapter.as_chunks::<4>().0, base.as_chunks::<4>().0);
    let squares = pulp::Arch::new().dispatch(|| {
        let mut sums = [0.0f64; LANES];
        for (values, bases) in adapter.chunks(LANES).zip(base.chunks(LANES)) {
            for ((sum, value), base) in sums.iter_mut().zip(values).zip(bases) {
                let difference = f64::from(f32::from_le_bytes(*value)) - f64::from(f32::from_le_bytes(*base));
                *sum += difference * difference;
            }
        }
        sums
    });
    squares.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_codec::encode;

    #[test]
    fn distances_are_euclidean() {
        let base = encode(&[1.0; 10]);
        let mut values = [1.0; 10];
        values[0] = 4.0;
        values[9] = -3.0;
        assert_eq!(distance(&encode(&values), &base), 5.0);
        values[3] = f32::NAN;
        assert!(distance(&encode(&values), &base).is_nan());
    }
}
