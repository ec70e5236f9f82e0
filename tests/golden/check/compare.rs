//! What "equal" means.

use ndarray::ArrayD;

/// Largest difference relative to the value itself.
const RELATIVE: f64 = 1e-4;
/// Largest difference relative to the tensor's largest value, for entries where terms cancel.
const OF_LARGEST: f64 = 1e-5;
/// Below this, a gradient is rounding: that of a key's bias is zero, which neither side computes exactly.
const NOTHING: f64 = 1e-7;

/// Asserts that `got` is `wanted` to 1e-4 relative, entry by entry.
pub fn assert_close(got: &ArrayD<f64>, wanted: &ArrayD<f64>, what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}: {:?} against {:?}", got.shape(), wanted.shape());
    let largest = wanted.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let allowed = RELATIVE * wanted.abs() + OF_LARGEST * largest + NOTHING;
        let error = (got - wanted).abs();
        assert!(error <= allowed, "{what}[{at}]: {got}, PyTorch has {wanted} (largest {largest:.3e})");
    }
}
