//! Tokenizers.

use fedpeft_text::Tokenizer;

/// A `tokenizer.json`, then a text that it should split.
pub fn text(bytes: &[u8]) {
    let (tokenizer, text) = crate::halves(bytes);
    let path = crate::folder().join("tokenizer.json");
    crate::write(&path, tokenizer);
    let Ok(tokenizer) = Tokenizer::load(&path, 16) else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(ids) = tokenizer.ids(text) {
        assert!(ids.len() <= 16 && ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary()));
    }
    let _ = tokenizer.encode(text, 0);
    let _ = tokenizer.pad_id();
}
