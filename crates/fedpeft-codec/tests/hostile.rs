//! Bytes of strangers: an adapter of finite values, or an error; never a panic, never more memory than the layout
//! allows.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

mod support;

use fedpeft_codec::{Base, Codec, CodecError, describe};
use proptest::prelude::*;
use support::{TEXTS, adapter, layout, pipeline, seed, texts};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in texts()) {
        let layout = layout(&[&[3, 4], &[5]]);
        let codec = Codec::new(pipeline(text), &layout);
        prop_assert!(codec.decode(&bytes, Some(&Base::new(&[0.0; 17]))).is_err());
        let _ = describe(&bytes, &layout);
    }

    #[test]
    fn arbitrary_bodies_are_an_adapter_or_an_error(
        body in proptest::collection::vec(any::<u8>(), 0..120),
        text in texts(),
    ) {
        let layout = layout(&[&[3, 4], &[5]]);
        let codec = Codec::new(pipeline(text), &layout);
        let base = Base::new(&[0.5; 17]);
        let honest = codec.encode(&[1.0; 17], Some(&base), seed(0)).unwrap();
        let bytes = [&honest[..44], &body].concat();
        if let Ok(values) = codec.decode(&bytes, Some(&base)) {
            prop_assert!(values.len() == 17 && values.iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn damage_is_an_adapter_or_an_error(
        (layout, values, base) in adapter((-1f32..1.0).boxed()),
        text in texts(),
        at in any::<prop::sample::Index>(),
        mask in 1u8..,
        cut in any::<prop::sample::Index>(),
        tail in proptest::collection::vec(any::<u8>(), 1..9),
    ) {
        let (codec, base) = (Codec::new(pipeline(text), &layout), Base::new(&base));
        let bytes = codec.encode(&values, Some(&base), seed(1)).unwrap().to_vec();
        let mut damaged = bytes.clone();
        damaged[at.index(bytes.len())] ^= mask;
        if let Ok(got) = codec.decode(&damaged, Some(&base)) {
            prop_assert!(got.len() == values.len() && got.iter().all(|value| value.is_finite()));
        }
        prop_assert!(codec.decode(&bytes[..cut.index(bytes.len())], Some(&base)).is_err());
        prop_assert!(codec.decode(&[&bytes[..], &tail].concat(), Some(&base)).is_err());
    }
}

#[test]
fn every_field_of_the_header_is_checked() {
    let layout = layout(&[&[20]]);
    let values: Vec<f32> = (0..20).map(|at| at as f32).collect();
    let base = Base::new(&[0.0; 20]);
    for text in TEXTS {
        let codec = Codec::new(pipeline(text), &layout);
        let bytes = codec.encode(&values, Some(&base), seed(0)).unwrap();
        for at in 0..44 {
            // The seed of drawn indices is the sender's to choose.
            if text.contains("randk") && at >= 36 {
                continue;
            }
            for mask in [1, 2, 0x40, 0xff] {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= mask;
                let error = codec.decode(&damaged, Some(&base)).unwrap_err();
                let named = matches!(
                    error,
                    CodecError::Header(_)
                        | CodecError::Version(_)
                        | CodecError::Values { .. }
                        | CodecError::Pipeline { .. }
                        | CodecError::Base
                );
                assert!(named, "{text}, byte {at}: {error}");
            }
        }
    }
}

/// A body after the header that `text` gives.
fn with_body(text: &str, body: &[u8]) -> Result<Vec<f32>, CodecError> {
    let layout = layout(&[&[4]]);
    let (codec, base) = (Codec::new(pipeline(text), &layout), Base::new(&[0.0; 4]));
    let honest = codec.encode(&[1.0, 2.0, 3.0, 4.0], Some(&base), seed(0)).unwrap();
    codec.decode(&[&honest[..44], body].concat(), Some(&base))
}

#[test]
fn scales_and_codes_are_checked() {
    let int8 = |scale: f32, codes: [i8; 4]| {
        let codes = codes.map(|code| code.to_le_bytes()[0]);
        with_body("int8", &[&scale.to_le_bytes()[..], &codes].concat())
    };
    assert_eq!(int8(0.5, [1, -2, 127, -127]).unwrap(), [0.5, -1.0, 63.5, -63.5]);
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, -0.0] {
        assert!(matches!(int8(scale, [0; 4]), Err(CodecError::Body(_))), "{scale}");
    }
    assert!(matches!(int8(1.0, [0, -128, 0, 0]), Err(CodecError::Body(_))));
    assert!(matches!(int8(f32::MAX, [0, 2, 0, 0]), Err(CodecError::NotFinite { index: 1, .. })));
    let int4 = |codes: [u8; 2]| with_body("int4", &[&1f32.to_le_bytes()[..], &codes].concat());
    assert_eq!(int4([0x97, 0x0f]).unwrap(), [7.0, -7.0, -1.0, 0.0]);
    assert!(matches!(int4([0x08, 0]), Err(CodecError::Body(_))));
}

#[test]
fn floats_that_are_not_finite_are_refused() {
    for bits in [0x7c00u16, 0xfc00, 0x7e00] {
        let body = [bits, 0, 0, 0].map(u16::to_le_bytes).concat();
        assert!(matches!(with_body("fp16", &body), Err(CodecError::NotFinite { index: 0, .. })));
    }
    let body = [0x7fc0u16, 0, 0, 0].map(u16::to_le_bytes).concat();
    assert!(matches!(with_body("bf16", &body), Err(CodecError::NotFinite { .. })));
    for codes in [u32::MAX, u32::MAX - 1] {
        // From zero to the last bit patterns, which are no numbers.
        let body = [codes, 0, 0, 0].map(u32::to_le_bytes).concat();
        assert!(matches!(with_body("delta", &body), Err(CodecError::NotFinite { .. })));
    }
    let body = [&[0x01][..], &f32::NAN.to_le_bytes()].concat();
    assert!(matches!(with_body("delta,topk=0.25", &body), Err(CodecError::NotFinite { .. })));
}

#[test]
fn a_bomb_of_the_right_form_does_not_go_off() {
    // 1 GiB of zeros in one frame, in a message of 32 KiB, for an adapter of 4 values.
    let mut bomb = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    bomb.set_pledged_src_size(Some(1 << 30)).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 1 << 30), &mut bomb).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 100 << 10);
    for text in ["zstd", "int8,zstd", "delta,topk=0.5,zstd"] {
        let error = with_body(text, &bomb).unwrap_err();
        assert_eq!(error, CodecError::Body("it expands to more than its layout allows"));
    }
}
