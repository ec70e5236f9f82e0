//! Error feedback: nothing is lost, only late.

mod support;

use fedpeft_codec::{Base, Codec, CodecError, Feedback, Seed};
use proptest::prelude::*;
use support::{adapter, layout, pipeline, seed};

proptest! {
    #[test]
    fn sent_and_residual_make_the_input(
        (layout, values, base) in adapter((-10f32..10.0).boxed()),
        text in prop_oneof![
            Just("delta,topk=0.1"), Just("delta,topk=0.3,int8,zstd"), Just("delta,topk=1,int4"),
            Just("delta,randk=0.2"), Just("delta,randk=0.5,fp16"), Just("delta,topk=0.2,bf16,zstd"),
        ],
        rounds in 1u32..6,
    ) {
        let codec = Codec::new(pipeline(text), &layout);
        let mut feedback = Feedback::new(&layout);
        let mut sent = vec![0f64; values.len()];
        let zeros = vec![0.0; values.len()];
        let zero = Base::new(&zeros);
        // The same change again and again, so that what was sent can be read off a base of zeros exactly.
        let change: Vec<f32> = values.iter().zip(&base).map(|(value, base)| value - base).collect();
        for round in 1..=rounds {
            let seed = Seed::new(3, round, "client");
            let bytes = codec.encode_with(&change, Some(&zero), seed, &mut feedback, round).unwrap();
            let got = codec.decode(&bytes, Some(&zero)).unwrap();
            sent.iter_mut().zip(got).for_each(|(sum, got)| *sum += f64::from(got));
            for ((sent, residual), change) in sent.iter().zip(feedback.residual()).zip(&change) {
                let input = f64::from(*change) * f64::from(round);
                let scale = f64::from(change.abs().max(20.0)) * f64::from(round * round);
                let error = (sent + f64::from(*residual) - input).abs();
                prop_assert!(error <= scale * f64::from(f32::EPSILON), "{text}: {sent} + {residual} is not {input}");
            }
        }
    }
}

#[test]
fn what_was_left_out_is_sent_later() {
    let layout = layout(&[&[4]]);
    let codec = Codec::new(pipeline("delta,topk=0.25"), &layout);
    let zeros = [0.0; 4];
    let base = Base::new(&zeros);
    let mut feedback = Feedback::new(&layout);
    let mut send = |round| {
        let bytes =
            codec.encode_with(&[4.0, 3.0, 0.0, 0.0], Some(&base), seed(0), &mut feedback, round).unwrap();
        codec.decode(&bytes, Some(&base)).unwrap()
    };
    assert_eq!(send(1), [4.0, 0.0, 0.0, 0.0]);
    assert_eq!(send(2), [0.0, 6.0, 0.0, 0.0]);
    assert_eq!(send(3), [8.0, 0.0, 0.0, 0.0]);
    // Done again, a round sends the same.
    assert_eq!(send(3), [8.0, 0.0, 0.0, 0.0]);
    assert_eq!(send(4), [0.0, 6.0, 0.0, 0.0]);
}

#[test]
fn an_error_or_another_pipeline_leaves_it_as_it_was() {
    let layout = layout(&[&[4]]);
    let zeros = [0.0; 4];
    let base = Base::new(&zeros);
    let mut feedback = Feedback::new(&layout);
    let topk = Codec::new(pipeline("delta,topk=0.25,fp16"), &layout);
    topk.encode_with(&[4.0, 3.0, 2.0, 1.0], Some(&base), seed(0), &mut feedback, 1).unwrap();
    let before = feedback.clone();
    for bad in [[f32::NAN, 0.0, 0.0, 0.0], [1e6, 0.0, 0.0, 0.0]] {
        topk.encode_with(&bad, Some(&base), seed(0), &mut feedback, 2).unwrap_err();
        assert_eq!(feedback, before);
    }
    assert_eq!(topk.encode_with(&zeros, None, seed(0), &mut feedback, 2), Err(CodecError::NoBase));
    for text in ["fp32", "int8", "delta,int8", "delta,topk=0.25+forget"] {
        let codec = Codec::new(pipeline(text), &layout);
        let values = [4.0, 3.0, 2.0, 1.0];
        let with = codec.encode_with(&values, Some(&base), seed(5), &mut feedback, 2).unwrap();
        assert_eq!(with, codec.encode(&values, Some(&base), seed(5)).unwrap());
        assert_eq!(feedback, before);
    }
    // One of another adapter is refused.
    let mut other = Feedback::new(&support::layout(&[&[5]]));
    let error = topk.encode_with(&zeros, Some(&base), seed(0), &mut other, 1).unwrap_err();
    assert!(matches!(error, CodecError::Size { .. }));
}
