use super::*;
use crate::wire::Format;

fn pipeline(text: &str) -> Pipeline {
    text.parse().unwrap()
}

fn json(text: &str) -> Result<Pipeline, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[test]
fn what_is_written_is_read_again() {
    for text in [
        "fp32",
        "fp16",
        "int8,zstd",
        "delta,zstd=9",
        "delta,topk=0.1",
        "delta,topk=0.125+forget,int8=channel+nearest,zstd",
        "delta,randk=1,bf16",
        "delta,int4=nearest",
    ] {
        let pipeline = pipeline(text);
        assert_eq!(pipeline.to_string(), text);
        for format in [Format::Json, Format::MessagePack] {
            let bytes = format.encode(&pipeline).unwrap();
            assert_eq!(format.decode::<Pipeline>(&bytes).unwrap(), pipeline);
        }
    }
    assert_eq!(json("[]").unwrap(), Pipeline::default());
    assert_eq!(pipeline(" delta , fp32 "), pipeline("delta"));
}

#[test]
fn tables_and_names_say_the_same() {
    let tables = r#"["delta", {"kind": "topk", "fraction": 0.1}, {"kind": "int8", "per": "channel"},
        {"kind": "zstd", "level": 9}]"#;
    assert_eq!(json(tables).unwrap(), pipeline("delta,topk=0.1,int8=channel,zstd=9"));
    let forgetful = r#"[{"kind": "delta"}, {"kind": "randk", "fraction": 0.5, "feedback": false}]"#;
    assert_eq!(json(forgetful).unwrap(), pipeline("delta,randk=0.5+forget"));
}

#[test]
fn properties_follow_from_the_stages() {
    assert!(pipeline("fp32").is_plain() && pipeline("fp32").is_lossless());
    assert!(!pipeline("zstd").is_plain() && pipeline("delta,zstd").is_lossless());
    assert!(!pipeline("fp16").is_lossless() && !pipeline("delta,topk=1").is_lossless());
    assert!(pipeline("delta,topk=0.1").feedback() && !pipeline("delta,topk=0.1+forget").feedback());
    assert!(!pipeline("delta,int8").feedback());
}

#[test]
fn wrong_lists_name_the_cure() {
    for (text, cure) in [
        ("", "known are delta"),
        ("int9", "known are delta"),
        ("zstd,int8", "int8 must come before zstd: first delta"),
        ("int8,delta", "delta must come before int8"),
        ("int8,topk=0.1", "topk must come before int8"),
        ("int8,fp16", "int8 and fp16 do the same thing in two ways: keep one"),
        ("zstd,zstd", "keep one"),
        ("topk=0.1", "put delta first"),
        ("randk=0.1,int8", "put delta first"),
        ("delta,topk", "a share, as in topk=0.1"),
        ("delta,topk=x", "a share"),
        ("delta,topk=0.1+forgive", "+forget"),
        ("delta,topk=0", "greater than 0 and at most 1, not 0"),
        ("delta,randk=1.5", "at most 1, not 1.5"),
        ("delta,topk=NaN", "not NaN"),
        ("zstd=20", "1 to 19, not 20"),
        ("zstd=fast", "a level, as in zstd=9"),
        ("int8=row", "tensor or channel"),
        ("fp16=nearest", "no parameters"),
        ("delta=1", "no parameters"),
    ] {
        let error = text.parse::<Pipeline>().unwrap_err().to_string();
        assert!(error.contains(cure), "{text:?}: {error}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn wrong_tables_are_refused() {
    for (text, cure) in [
        (r#"[{"kind": "topk", "fraction": 0.1}]"#, "put delta first"),
        (r#"["delta", {"kind": "topk"}]"#, "fraction"),
        (r#"["delta", {"kind": "topk", "fraction": 0.1, "k": 3}]"#, "k"),
        (r#"[{"kind": "delta", "from": 3}]"#, "from"),
        (r#"[{"kind": "int8", "per": "row"}]"#, "channel"),
        (r#"[{"kind": "int8", "pre": "channel"}]"#, "pre"),
        (r#"[{"kind": "zstd", "level": 99}]"#, "1 to 19"),
        (r#"[{"kind": "gzip"}]"#, "gzip"),
        (r#"[8]"#, "the name of a stage"),
    ] {
        let error = json(text).unwrap_err();
        assert!(error.contains(cure), "{text}: {error}");
    }
}
