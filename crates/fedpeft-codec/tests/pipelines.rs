//! Every pipeline, from values to values.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

mod support;

use fedpeft_codec::{Base, Codec, CodecError, Layout, Pipeline, Seed, describe};
use proptest::prelude::*;
use support::{TEXTS, adapter, finite, layout, pipeline, seed};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Values that a pipeline of this text gives back.
fn through(text: &str, layout: &Layout, values: &[f32], base: &[f32], seed: Seed) -> Vec<f32> {
    let (codec, base) = (Codec::new(pipeline(text), layout), Base::new(base));
    let bytes = codec.encode(values, Some(&base), seed).unwrap();
    assert!(bytes.len() as u64 <= codec.most_bytes());
    codec.decode(&bytes, Some(&base)).unwrap()
}

/// The largest magnitude of each value's scale group.
fn largest(layout: &Layout, values: &[f32], per_channel: bool) -> Vec<f32> {
    let mut largest = Vec::new();
    for (spec, range) in layout.ranges() {
        let groups = if per_channel && spec.shape.len() > 1 { spec.shape[0] as usize } else { 1 };
        for group in values[range.clone()].chunks(range.len() / groups) {
            let most = group.iter().fold(0f32, |most, value| most.max(value.abs()));
            largest.extend(std::iter::repeat_n(most, group.len()));
        }
    }
    largest
}

proptest! {
    #[test]
    fn lossless_pipelines_keep_every_bit(
        (layout, values, base) in adapter(finite()),
        text in prop_oneof![Just("fp32"), Just("zstd"), Just("delta"), Just("delta,zstd"), Just("delta,fp32,zstd=1")],
    ) {
        prop_assert_eq!(bits(&through(text, &layout, &values, &base, seed(1))), bits(&values));
    }

    #[test]
    fn integers_are_off_by_half_a_step_or_one(
        (layout, values, base) in adapter((-1000f32..1000.0).boxed()),
        delta: bool, zstd: bool, channel: bool, nearest: bool, four: bool, number: u64,
    ) {
        let (name, codes) = if four { ("int4", 7.0) } else { ("int8", 127.0) };
        let text = format!(
            "{}{name}={}+{}{}",
            if delta { "delta," } else { "" },
            if channel { "channel" } else { "tensor" },
            if nearest { "nearest" } else { "stochastic" },
            if zstd { ",zstd" } else { "" },
        );
        let got = through(&text, &layout, &values, &base, seed(number));
        let stored: Vec<f32> =
            values.iter().zip(&base).map(|(v, b)| if delta { v - b } else { *v }).collect();
        let steps = largest(&layout, &stored, channel).into_iter().map(|most| most / codes);
        for (((got, value), step), base) in got.iter().zip(&values).zip(steps).zip(&base) {
            let rounding = if delta { (value.abs() + base.abs()) * 4.0 * f32::EPSILON } else { 0.0 };
            let bound = step * if nearest { 0.5 } else { 1.0 } * 1.0001 + rounding;
            prop_assert!((got - value).abs() <= bound, "{text}: {value} became {got}, step {step}");
        }
    }

    #[test]
    fn halves_are_off_by_a_rounding(
        (layout, values, base) in adapter((-60_000f32..60_000.0).boxed()),
        delta: bool, zstd: bool, brain: bool,
    ) {
        let text = [if delta { "delta," } else { "" }, if brain { "bf16" } else { "fp16" }, if zstd { ",zstd" } else { "" }].concat();
        // Changes may be twice as large, which is too much for fp16.
        let half = |values: &[f32]| values.iter().map(|value| value / 2.0).collect::<Vec<_>>();
        let (values, base) = (half(&values), half(&base));
        let got = through(&text, &layout, &values, &base, seed(0));
        for ((got, value), base) in got.iter().zip(&values).zip(&base) {
            let (stored, rounding) = if delta {
                (value - base, (value.abs() + base.abs()) * 4.0 * f32::EPSILON)
            } else {
                (*value, 0.0)
            };
            let bound = stored.abs() * 2f32.powi(if brain { -8 } else { -11 });
            prop_assert!((got - value).abs() <= bound.max(2f32.powi(-25)) + rounding);
        }
    }

    #[test]
    fn the_largest_changes_arrive_and_the_others_do_not(
        (layout, values, base) in adapter((-100f32..100.0).boxed()),
        fraction in 0.01f64..1.0,
        zstd: bool,
    ) {
        let text = format!("delta,topk={fraction}{}", if zstd { ",zstd" } else { "" });
        let got = through(&text, &layout, &values, &base, seed(0));
        let sent: Vec<bool> = got.iter().zip(&base).map(|(got, base)| got != base).collect();
        let changes: Vec<f32> = values.iter().zip(&base).map(|(value, base)| value - base).collect();
        let count = (fraction * values.len() as f64).ceil() as usize;
        let most_left_out = changes.iter().zip(&sent).filter(|(_, sent)| !**sent).map(|(change, _)| change.abs());
        let least_sent = changes.iter().zip(&sent).filter(|(_, sent)| **sent).map(|(change, _)| change.abs());
        prop_assert!(sent.iter().filter(|sent| **sent).count() <= count);
        prop_assert!(most_left_out.fold(0.0, f32::max) <= least_sent.fold(f32::INFINITY, f32::min));
        for ((got, value), sent) in got.iter().zip(&values).zip(&sent) {
            prop_assert!(!sent || (got - value).abs() <= 400.0 * f32::EPSILON);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes(
        (layout, values, base) in adapter((-1f32..1.0).boxed()),
        text in support::texts(),
        number: u64,
    ) {
        let (codec, base) = (Codec::new(pipeline(text), &layout), Base::new(&base));
        let encode = || codec.encode(&values, Some(&base), seed(number)).unwrap();
        prop_assert_eq!(encode(), encode());
    }
}

#[test]
fn other_seeds_round_and_choose_otherwise() {
    let layout = layout(&[&[500]]);
    let values: Vec<f32> = (0..500).map(|at| (at as f32).sin()).collect();
    let base = vec![0.0; 500];
    for text in ["int8", "int4", "delta,randk=0.1"] {
        let through = |number| through(text, &layout, &values, &base, seed(number));
        assert_ne!(through(1), through(2), "{text}");
    }
}

/// Mean of what arrives over many seeds, and how far it may be off for its standard error.
fn mean_is_the_value(text: &str, spread: f64) {
    let layout = layout(&[&[8, 5]]);
    let values: Vec<f32> = (0..40).map(|at| (at as f32 * 0.7).sin()).collect();
    let (base, draws) = (vec![0.25; 40], 4000);
    let mut sums = vec![0f64; 40];
    for number in 0..draws {
        let got = through(text, &layout, &values, &base, seed(number));
        sums.iter_mut().zip(got).for_each(|(sum, got)| *sum += f64::from(got));
    }
    for (sum, value) in sums.iter().zip(&values) {
        let error = (sum / draws as f64 - f64::from(*value)).abs();
        assert!(error < 5.0 * spread / (draws as f64).sqrt(), "{text}: mean of {value} is off by {error}");
    }
}

#[test]
fn stochastic_rounding_has_the_right_expectation() {
    // A standard deviation of at most half a step; changes reach 1.25.
    mean_is_the_value("int8", 0.5 / 127.0);
    mean_is_the_value("int4", 0.5 / 7.0);
    mean_is_the_value("delta,int4=channel", 0.5 * 1.25 / 7.0);
}

#[test]
fn random_choice_without_feedback_has_the_right_expectation() {
    // d/k x in k of d draws: standard deviation |x| sqrt(d/k - 1).
    mean_is_the_value("delta,randk=0.25+forget", 1.25 * 3f64.sqrt());
    mean_is_the_value("delta,randk=0.25+forget,int8", 1.25 * 3f64.sqrt() + 0.5 * 5.0 / 127.0);
}

#[test]
fn the_bytes_are_pinned() {
    // What is written today is read by every later version.
    let layout = layout(&[&[2, 2], &[3]]);
    let (values, base) = ([1.0, -0.5, 0.25, 0.0, 3.0, -1.0, 2.0], [0.5; 7]);
    let hex = |text: &str| {
        let codec = Codec::new(pipeline(text), &layout);
        let base = Base::new(&base);
        let bytes = codec.encode(&values, Some(&base), Seed::new(1, 2, "client")).unwrap();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let got: Vec<(&str, String)> = PINNED.iter().map(|(text, _)| (*text, hex(text))).collect();
    let expected: Vec<(&str, String)> =
        PINNED.iter().map(|(text, hex)| (*text, hex.replace(char::is_whitespace, ""))).collect();
    assert_eq!(got, expected);
}

/// Those of the first five were written down from the documentation of the format, by a program of its own.
const PINNED: [(&str, &str); 7] = [
    (
        "delta",
        "46504301010000000000000007000000000000000700000000000000317f1be3e8b0f6fc0000000000000000
        00000001010000fcffffff00ffffff7d00008002010000fd00000002",
    ),
    (
        "fp16",
        "4650430100000100000000000700000000000000070000000000000000000000000000000000000000000000
        003c00b800340000004200bc0040",
    ),
    (
        "int8=nearest",
        "4650430100000300000000000700000000000000070000000000000000000000000000000000000000000000
        0402013c0683c13c7fc020007fd655",
    ),
    (
        "int4=channel+nearest",
        "4650430100000401000000000700000000000000070000000000000000000000000000000000000000000000
        2549123e2549123db76ddb3ed707e705",
    ),
    (
        "delta,topk=0.3",
        "46504301010100000000000007000000000000000300000000000000317f1be3e8b0f6fc0000000000000000
        70000020400000c0bf0000c03f",
    ),
    (
        "int4",
        "4650430100000400000000000700000000000000070000000000000000000000000000000000000000000000
        2549123eb76ddb3ec702d705",
    ),
    (
        "delta,randk=0.3",
        "46504301010200000000000007000000000000000300000000000000317f1be3e8b0f6fcbe9a965201cb6aac
        0000003f000000bf00002040",
    ),
];

#[test]
fn sizes_are_as_documented() {
    let layout = layout(&[&[100, 10], &[24]]);
    let values = vec![0.5; 1024];
    let base = vec![0.0; 1024];
    let size = |text: &str| {
        let codec = Codec::new(pipeline(text), &layout);
        codec.encode(&values, Some(&Base::new(&base)), seed(0)).unwrap().len()
    };
    let header = 44;
    for (text, expected) in [
        ("fp32", 4096),
        ("delta", header + 4096),
        ("fp16", header + 2048),
        ("bf16", header + 2048),
        ("int8", header + 2 * 4 + 1024),
        ("int8=channel", header + 101 * 4 + 1024),
        ("int4", header + 2 * 4 + 512),
        ("delta,topk=0.01", header + 11 + 11 * 4),
        ("delta,topk=0.5", header + 128 + 512 * 4),
        ("delta,randk=0.01,int8", header + 2 * 4 + 11),
    ] {
        assert_eq!(size(text), expected, "{text}");
    }
    assert!(size("int8,zstd") < 150);
}

#[test]
fn what_is_not_finite_or_out_of_range_is_named() {
    let layout = layout(&[&[3], &[2, 2]]);
    let base = [0.0; 7];
    let encode = |text: &str, values: &[f32]| {
        Codec::new(pipeline(text), &layout).encode(values, Some(&Base::new(&base)), seed(0)).unwrap_err()
    };
    for text in TEXTS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = encode(text, &[1.0, 1.0, 1.0, 1.0, bad, 1.0, 1.0]);
            assert!(
                matches!(&error, CodecError::NotFinite { tensor, index: 1, .. } if tensor == "t1"),
                "{text}: {error}"
            );
        }
        assert!(matches!(encode(text, &[1.0; 6]), CodecError::Size { .. }));
    }
    let large = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 70_000.0];
    let error = encode("fp16", &large);
    assert!(matches!(&error, CodecError::Range { tensor, index: 3, stage: "fp16", .. } if tensor == "t1"));
    assert!(error.to_string().contains("use bf16"));
    let error = encode("delta,topk=0.2,fp16", &large);
    assert!(matches!(&error, CodecError::Range { tensor, index: 3, .. } if tensor == "t1"), "{error}");
    let huge = [1.0, f32::MAX, 1.0, 1.0, 1.0, 1.0, 1.0];
    for text in ["bf16", "fp16"] {
        assert!(matches!(encode(text, &huge), CodecError::Range { index: 1, .. }));
    }
}

#[test]
fn extremes_of_f32_survive_integers() {
    let tiny = [1e-45, -1e-40, f32::MIN_POSITIVE, 0.0];
    let layout = layout(&[&[4]]);
    for text in ["int8=nearest", "int4=nearest"] {
        let got = through(text, &layout, &tiny, &[0.0; 4], seed(0));
        assert!(got.iter().zip(&tiny).all(|(got, value)| (got - value).abs() <= f32::MIN_POSITIVE / 2.0));
        let codec = Codec::new(pipeline(text), &layout);
        match codec.encode(&[f32::MAX, -f32::MAX, 0.0, 1.0], None, seed(0)) {
            Ok(bytes) => drop(codec.decode(&bytes, None).unwrap()),
            Err(error) => assert!(matches!(error, CodecError::Range { index: 0, .. }), "{error}"),
        }
        assert_eq!(through(text, &layout, &[0.0, -0.0, 0.0, 0.0], &[0.0; 4], seed(0)), [0.0; 4]);
    }
}

#[test]
fn another_base_or_pipeline_is_refused() {
    let layout = layout(&[&[20]]);
    let (values, zeros, ones) = ([2.0; 20], [0.0; 20], [1.0; 20]);
    let codec = |text: &str| Codec::new(pipeline(text), &layout);
    let base = Base::new(&zeros);
    for text in ["delta", "delta,int8,zstd", "delta,topk=0.5"] {
        let bytes = codec(text).encode(&values, Some(&base), seed(0)).unwrap();
        assert_eq!(codec(text).decode(&bytes, Some(&Base::new(&ones))), Err(CodecError::Base));
        assert_eq!(codec(text).decode(&bytes, None), Err(CodecError::NoBase));
        assert_eq!(codec(text).encode(&values, None, seed(0)), Err(CodecError::NoBase));
    }
    let bytes = codec("delta,topk=0.5,int8,zstd").encode(&values, Some(&base), seed(0)).unwrap();
    assert_eq!(describe(&bytes, &layout).unwrap(), "delta,topk (10 values),int8,zstd");
    for other in ["int8", "delta,topk=0.5,int8", "delta,topk=0.4,int8,zstd", "delta,randk=0.5,int8,zstd"] {
        let error = codec(other).decode(&bytes, Some(&base)).unwrap_err();
        assert!(matches!(error, CodecError::Pipeline { .. }), "{error}");
        assert!(error.to_string().contains("encoded as delta,topk (10 values),int8,zstd, the run asks for"));
    }
    assert!(matches!(codec("fp32").decode(&bytes, None), Err(CodecError::Size { .. })));
    // How values were rounded or how hard zstd tried makes no difference to a reader.
    codec("delta,topk=0.5,int8=nearest,zstd=9").decode(&bytes, Some(&base)).unwrap();
    let other = support::layout(&[&[21]]);
    let error = Codec::new(Pipeline::default(), &other);
    assert!(matches!(error.decode(&bytes, None), Err(CodecError::Size { .. })));
    let error = Codec::new(pipeline("int8"), &other).decode(&bytes, None).unwrap_err();
    assert!(matches!(error, CodecError::Values { got: 20, expected: 21 }));
}
