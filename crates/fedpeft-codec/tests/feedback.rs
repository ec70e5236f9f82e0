//! Error feedback: nothing is lost, only late.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

mod support;

use fedpeft_codec::{Base, Codec, CodecError, Seed};
use proptest::prelude::*;
use support::{adapter, layout, pipeline, seed};

proptest! {
    #[test]
    fn sent_and_left_out_make_the_input(
        (layout, values, base) in adapter((-10f32..10.0).boxed()),
        text in prop_oneof![
            Just("delta,topk=0.1"), Just("delta,topk=0.3,int8,zstd"), Just("delta,topk=1,int4"),
            Just("delta,randk=0.2"), Just("delta,randk=0.5,fp16"), Just("delta,topk=0.2,bf16,zstd"),
        ],
        rounds in 1u32..6,
    ) {
        let codec = Codec::new(pipeline(text), &layout);
        let mut left_out = vec![0.0; values.len()];
        let mut sent = vec![0f64; values.len()];
        let zeros = vec![0.0; values.len()];
        let zero = Base::new(&zeros);
        // The same change again and again, so that what was sent can be read off a base of zeros exactly.
        let change: Vec<f32> = values.iter().zip(&base).map(|(value, base)| value - base).collect();
        for round in 1..=rounds {
            let seed = Seed::new(3, round, "client");
            let (bytes, rest) = codec.encode_with(&change, Some(&zero), seed, left_out).unwrap();
            left_out = rest;
            let got = codec.decode(&bytes, Some(&zero)).unwrap();
            sent.iter_mut().zip(got).for_each(|(sum, got)| *sum += f64::from(got));
            for ((sent, left_out), change) in sent.iter().zip(&left_out).zip(&change) {
                let input = f64::from(*change) * f64::from(round);
                let scale = f64::from(change.abs().max(20.0)) * f64::from(round * round);
                let error = (sent + f64::from(*left_out) - input).abs();
                prop_assert!(error <= scale * f64::from(f32::EPSILON), "{text}: {sent} + {left_out} is not {input}");
            }
        }
    }
}

#[test]
fn what_was_left_out_is_sent_later() {
    let layout = layout(&[&[4]]);
    let codec = Codec::new(pipeline("delta,topk=0.25"), &layout);
    let base = Base::new(&[0.0; 4]);
    let send = |left_out: &[f32]| {
        let values = [4.0, 3.0, 0.0, 0.0];
        let (bytes, rest) = codec.encode_with(&values, Some(&base), seed(0), left_out.to_vec()).unwrap();
        (codec.decode(&bytes, Some(&base)).unwrap(), rest)
    };
    let (sent, first) = send(&[0.0; 4]);
    assert_eq!((&sent[..], &first[..]), (&[4.0, 0.0, 0.0, 0.0][..], &[0.0, 3.0, 0.0, 0.0][..]));
    let (sent, second) = send(&first);
    assert_eq!((&sent[..], &second[..]), (&[0.0, 6.0, 0.0, 0.0][..], &[4.0, 0.0, 0.0, 0.0][..]));
    let (sent, _) = send(&second);
    assert_eq!(sent, [8.0, 0.0, 0.0, 0.0]);
    // An update that does not count is sent again from where it began.
    assert_eq!(send(&first).0, [0.0, 6.0, 0.0, 0.0]);
}

#[test]
fn what_cannot_be_sent_is_an_error() {
    let layout = layout(&[&[4]]);
    let zeros = [0.0; 4];
    let base = Base::new(&zeros);
    let topk = Codec::new(pipeline("delta,topk=0.25,fp16"), &layout);
    for bad in [[f32::NAN, 0.0, 0.0, 0.0], [1e6, 0.0, 0.0, 0.0], [f32::MAX, 0.0, 0.0, 0.0]] {
        topk.encode_with(&bad, Some(&base), seed(0), vec![0.0; 4]).unwrap_err();
    }
    let error = topk.encode_with(&[f32::MAX; 4], Some(&base), seed(0), vec![f32::MAX; 4]).unwrap_err();
    assert!(matches!(error, CodecError::NotFinite { .. }), "{error}");
    assert_eq!(topk.encode_with(&zeros, None, seed(0), vec![0.0; 4]), Err(CodecError::NoBase));
    // That of another adapter.
    let error = topk.encode_with(&zeros, Some(&base), seed(0), vec![0.0; 5]).unwrap_err();
    assert!(matches!(error, CodecError::Size { .. }));
}

#[test]
fn other_pipelines_leave_it_as_it_is() {
    let layout = layout(&[&[4]]);
    let base = Base::new(&[0.0; 4]);
    for text in ["fp32", "int8", "delta,int8", "delta,topk=0.25+forget"] {
        let codec = Codec::new(pipeline(text), &layout);
        let values = [4.0, 3.0, 2.0, 1.0];
        let (with, left_out) = codec.encode_with(&values, Some(&base), seed(5), vec![0.5; 4]).unwrap();
        assert_eq!(with, codec.encode(&values, Some(&base), seed(5)).unwrap());
        assert_eq!(left_out, [0.5; 4]);
    }
}
