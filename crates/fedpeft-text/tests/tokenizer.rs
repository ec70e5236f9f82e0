//! Tokenizers from files: a small one written here, and MiniLM's compared with what `transformers` makes of the
//! same texts.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::path::PathBuf;

use fedpeft_text::{TextError, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Words by white space, `[CLS]` and `[SEP]` around them.
fn small() -> Value {
    json!({
        "version": "1.0",
        "truncation": {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "[PAD]"
        },
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": null,
        "model": {
            "type": "WordLevel",
            "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "cats": 4, "dogs": 5, "and": 9},
            "unk_token": "[UNK]"
        }
    })
}

fn load(file: &Value, max_length: usize) -> (TempDir, Result<Tokenizer, TextError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let tokenizer = Tokenizer::load(&path, max_length);
    (folder, tokenizer)
}

#[test]
fn texts_are_truncated_and_padded_on_the_right() {
    let (_folder, tokenizer) = load(&small(), 6);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.pad_id().unwrap(), 0);
    assert_eq!(tokenizer.ids("cats and dogs").unwrap(), [1, 4, 9, 5, 2]);
    assert_eq!(tokenizer.ids("dogs birds dogs cats cats cats").unwrap(), [1, 5, 3, 5, 4, 2]);
    let padded = tokenizer.encode("cats", 7).unwrap();
    assert_eq!((padded.ids, padded.mask), (vec![1, 4, 2, 7, 7, 7], vec![1, 1, 1, 0, 0, 0]));
}

#[test]
fn a_tokenizer_of_another_model_is_named() {
    let (_folder, tokenizer) = load(&small(), 6);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.vocabulary(), 10);
    tokenizer.check_vocabulary(10).unwrap();
    let error = tokenizer.check_vocabulary(9).unwrap_err().to_string();
    let whole =
        error.contains("up to 9") && error.contains("9 tokens (0 to 8)") && error.contains("tokenizer.json");
    assert!(whole && !error.contains('\n'), "{error}");
}

#[test]
fn unusable_files_are_one_line() {
    let (_folder, short) = load(&small(), 2);
    assert!(matches!(short, Err(TextError::Length { special: 2, .. })), "{short:?}");
    let (_folder, other) = load(&json!({"model": "none"}), 6);
    let error = other.unwrap_err().to_string();
    assert!(error.contains("is no tokenizer") && !error.contains('\n'), "{error}");
    assert!(matches!(Tokenizer::load("no/such/file".as_ref(), 6), Err(TextError::Io { .. })));
    let mut unpadded = small();
    unpadded["model"]["vocab"] = json!({"[CLS]": 1, "[SEP]": 2, "[UNK]": 3});
    let (_folder, unpadded) = load(&unpadded, 6);
    assert!(matches!(unpadded.unwrap().pad_id(), Err(TextError::NoPadding(_))));
}

#[test]
fn minilm_tokens_are_those_of_transformers() {
    let path = fedpeft_testkit::assets().minilm().unwrap().join("tokenizer.json");
    let tokenizer = Tokenizer::load(&path, 16).unwrap();
    tokenizer.check_vocabulary(30_522).unwrap();
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let golden = golden.join("../../tests/golden/bert_import/minilm_tokens.json");
    let lines: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    for line in lines.as_array().unwrap() {
        let wanted: Vec<u32> = serde_json::from_value(line["ids"].clone()).unwrap();
        assert_eq!(tokenizer.ids(line["text"].as_str().unwrap()).unwrap(), wanted, "{}", line["text"]);
    }
}

/// `tokenizers` panics about both.
#[test]
fn a_damaged_tokenizer_is_one_clear_error() {
    let text = small().to_string();
    let broken = text.replace("\"decoder\":null", "\"decoder\":{\"type\":\"WordPiece\",}");
    assert_ne!(text, broken);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, broken).unwrap();
    let error = Tokenizer::load(&path, 6).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is no tokenizer") && !error.contains('\n'), "{error}");

    let mut precompiled = small();
    precompiled["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    let error = load(&precompiled, 6).1.unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is no tokenizer") && !error.contains('\n'), "{error}");
    // One unit of a table, which points out of it.
    precompiled["normalizer"]["precompiled_charsmap"] = json!("BAAAAP///38=");
    let error = load(&precompiled, 6).1.unwrap_err().to_string();
    assert!(error.contains("do not fit together"), "{error}");

    let mut template = small();
    template["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {}
    });
    let error = load(&template, 6).1.unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is no tokenizer") && !error.contains('\n'), "{error}");
}
