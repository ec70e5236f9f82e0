//! Adapters: what an update carries.

use fedpeft_codec::{Layout, TensorSpec};
use fedpeft_strategy::{Accumulator, Weight};

/// A layout, a weight and the bytes of an adapter of that layout: decoded, checked and added to a sum.
pub fn adapter(bytes: &[u8]) {
    let Some((&[tensors, weight, ..], rest)) = bytes.split_first_chunk::<4>() else { return };
    let spec = |(index, byte): (usize, &u8)| TensorSpec {
        name: format!("t{index}"),
        // Now and then a shape that no memory holds.
        shape: vec![u64::from(byte & 7) + 1, if *byte == 255 { u64::MAX } else { u64::from(byte >> 4) }],
    };
    let count = usize::from(tensors % 5).min(rest.len());
    let (shapes, adapter) = rest.split_at(count);
    let Ok(layout) = Layout::new(shapes.iter().enumerate().map(spec).collect()) else { return };
    if layout.values() > 1 << 16 {
        return;
    }
    let valid = fedpeft_codec::validate(adapter, &layout).is_ok();
    let decoded = fedpeft_codec::decode(adapter, &layout);
    assert_eq!(decoded.is_ok(), valid);
    if let Ok(values) = &decoded {
        assert!(values.len() == layout.values() && values.iter().all(|value| value.is_finite()));
        assert_eq!(fedpeft_codec::encode(values), adapter);
    }

    let (Ok(mut sum), Ok(weight)) = (Accumulator::new(layout), Weight::new(u64::from(weight) << 16)) else {
        return;
    };
    let before = sum.clone();
    match sum.add(adapter, weight) {
        Ok(()) => {
            assert!(valid, "an adapter that cannot be decoded is in the sum");
            let Ok(mean) = sum.mean() else { panic!("a sum of one update has no mean") };
            assert_eq!(mean.len(), adapter.len());
        }
        Err(_) => assert_eq!(sum, before, "a refused update changed the sum"),
    }
}
