//! Bounds on what a stranger's message may hold, checked before or while it is decoded.
//!
//! A decoded value takes more memory than its bytes: a one-byte `nil` in a buffered list becomes 32 bytes. So a message
//! is walked over first, without allocating: nesting, the number of values, and lengths that the bytes cannot keep
//! are refused before anything is built.

use std::collections::BTreeMap;

use rmp::Marker;
use serde::{Deserialize, Deserializer, de::Error};

/// Nesting allowed in a message; ours need 8.
pub(crate) const MAX_DEPTH: usize = 32;
/// Values allowed in a message: keys, elements, lists and maps each count. The largest of ours, the report of a
/// round of 10,000 clients, has some four hundred thousand.
const MAX_VALUES: u64 = 1 << 20;

/// Walks over a MessagePack message; returns how many bytes follow it. Bytes that end early are left to its decoder.
pub(crate) fn message_pack(body: &[u8]) -> Result<usize, String> {
    let (mut rest, mut values) = (body, 0);
    // Values still to come in each open list and map.
    let mut open: Vec<u64> = Vec::with_capacity(MAX_DEPTH);
    loop {
        while open.last() == Some(&0) {
            open.pop();
        }
        let Some((marker, after)) = rest.split_first() else { return Ok(0) };
        rest = after;
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        values += 1;
        if values > MAX_VALUES {
            return Err(format!("it has more than {MAX_VALUES} values"));
        }
        let skipped = match Marker::from_u8(*marker) {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => 0,
            Marker::Reserved => return Ok(0),
            Marker::U8 | Marker::I8 => 1,
            Marker::U16 | Marker::I16 | Marker::FixExt1 => 2,
            Marker::FixExt2 => 3,
            Marker::U32 | Marker::I32 | Marker::F32 => 4,
            Marker::FixExt4 => 5,
            Marker::U64 | Marker::I64 | Marker::F64 => 8,
            Marker::FixExt8 => 9,
            Marker::FixExt16 => 17,
            Marker::FixStr(length) => u64::from(length),
            Marker::Str8 | Marker::Bin8 => length(&mut rest, 1),
            Marker::Str16 | Marker::Bin16 => length(&mut rest, 2),
            Marker::Str32 | Marker::Bin32 => length(&mut rest, 4),
            Marker::Ext8 => 1 + length(&mut rest, 1),
            Marker::Ext16 => 1 + length(&mut rest, 2),
            Marker::Ext32 => 1 + length(&mut rest, 4),
            Marker::FixArray(count) => enter(&mut open, u64::from(count), rest)?,
            Marker::Array16 => enter(&mut open, length(&mut rest, 2), rest)?,
            Marker::Array32 => enter(&mut open, length(&mut rest, 4), rest)?,
            Marker::FixMap(count) => enter(&mut open, 2 * u64::from(count), rest)?,
            Marker::Map16 => enter(&mut open, 2 * length(&mut rest, 2), rest)?,
            Marker::Map32 => enter(&mut open, 2 * length(&mut rest, 4), rest)?,
        };
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let Some(after) = rest.get(skipped..) else {
            return Err(format!("it claims {skipped} bytes where {} are left", rest.len()));
        };
        rest = after;
        if open.iter().all(|left| *left == 0) {
            return Ok(rest.len());
        }
    }
}

/// A big-endian number of `bytes` bytes; of a message that ends within it, whatever: nothing follows.
fn length(rest: &mut &[u8], bytes: usize) -> u64 {
    let (number, after) = rest.split_at(bytes.min(rest.len()));
    *rest = after;
    number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Opens a list or map of `count` values, each of which takes a byte at least.
fn enter(open: &mut Vec<u64>, count: u64, rest: &[u8]) -> Result<u64, String> {
    if count > rest.len() as u64 {
        return Err(format!("it claims {count} values where {} bytes are left", rest.len()));
    }
    // One for the value itself, which is no list.
    if open.len() + 1 >= MAX_DEPTH {
        return Err(format!("it is nested deeper than {MAX_DEPTH}"));
    }
    open.push(count);
    Ok(0)
}

/// Walks over a JSON message; what is no JSON is left to its decoder.
pub(crate) fn json(body: &[u8]) -> Result<(), String> {
    let (mut values, mut depth, mut in_text, mut escaped) = (1u64, 0usize, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'[' | b'{' => (values, depth) = (values + 1, depth + 1),
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' => values += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH}"));
        }
        if values > MAX_VALUES {
            return Err(format!("it has more than {MAX_VALUES} values"));
        }
    }
    Ok(())
}

/// Text of at most `MOST` bytes.
pub(crate) fn text<'de, const MOST: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    within(text.len(), MOST, "bytes of text").map(|()| text)
}

/// A list of at most `MOST` elements.
pub(crate) fn list<'de, const MOST: usize, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    within(list.len(), MOST, "elements").map(|()| list)
}

/// At most `MOST` pairs of texts of at most [`LABEL`] bytes.
pub(crate) fn labels<'de, const MOST: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let labels = BTreeMap::<String, String>::deserialize(deserializer)?;
    within(labels.len(), MOST, "labels")?;
    let texts = labels.iter().flat_map(|(name, value)| [name, value]);
    within(texts.map(String::len).max().unwrap_or(0), LABEL, "bytes in a label")?;
    Ok(labels)
}

/// Most bytes of a label's name or value.
const LABEL: usize = 128;

fn within<E: Error>(found: usize, most: usize, what: &str) -> Result<(), E> {
    if found <= most { Ok(()) } else { Err(E::custom(format!("{found} {what} are more than {most}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_that_the_bytes_cannot_keep_are_refused() {
        for claim in [&[0xdd, 255, 255, 255, 255][..], &[0xdf, 255, 255, 255, 255], &[0xdc, 0, 9, 1, 2]] {
            assert!(message_pack(claim).unwrap_err().contains("values"), "{claim:?}");
        }
        for claim in
            [&[0xdb, 255, 255, 255, 255][..], &[0xc6, 255, 255, 255, 255], &[0xc9, 255, 255, 255, 255]]
        {
            assert!(message_pack(claim).unwrap_err().contains("bytes"), "{claim:?}");
        }
    }

    #[test]
    fn many_values_and_deep_nesting_are_refused() {
        let count = u32::try_from(MAX_VALUES).unwrap();
        let nils = [&[0xdd][..], &count.to_be_bytes(), &vec![0xc0; count as usize]].concat();
        assert!(message_pack(&nils).unwrap_err().contains("more than"));
        let zeros = format!("[{}0]", "0,".repeat(count as usize));
        assert!(json(zeros.as_bytes()).unwrap_err().contains("more than"));
        for depth in [MAX_DEPTH, 100_000] {
            assert!(message_pack(&vec![0x91; depth + 1]).unwrap_err().contains("nested"));
            assert!(json(&vec![b'['; depth + 1]).unwrap_err().contains("nested"));
        }
    }

    #[test]
    fn ordinary_messages_pass() {
        let message = (1u8, "a\"[,", vec![0u8; 300], [1.5f32, f32::MIN], BTreeMap::from([("k", i64::MIN)]));
        message_pack(&rmp_serde::to_vec_named(&message).unwrap()).unwrap();
        json(&serde_json::to_vec(&message).unwrap()).unwrap();
        json(format!("[{:?}]", "[,".repeat(1 << 20)).as_bytes()).unwrap();
        // What is cut short or goes on is for the decoder to say.
        for bytes in [&[][..], &[0x92, 1, 1, 0xc1], &[0xc1], b"{", b"\""] {
            message_pack(bytes).and(json(bytes)).unwrap();
        }
    }

    #[test]
    fn fields_are_bounded() {
        use crate::{PROTOCOL_VERSION, model::ModelVersion, presence::Presence, round::Update};
        use serde_json::{Value, from_value, json};
        fn refused<T: serde::de::DeserializeOwned + std::fmt::Debug>(
            mut valid: Value,
            pointer: &str,
            wrong: Value,
        ) {
            from_value::<T>(valid.clone()).unwrap();
            *valid.pointer_mut(pointer).unwrap() = wrong;
            let error = from_value::<T>(valid).unwrap_err().to_string();
            assert!(error.contains("more than"), "{pointer}: {error}");
        }
        let long = |length: usize| json!("x".repeat(length));
        let capabilities =
            json!({"trains": true, "evaluates": false, "examples": 1, "device": "cpu", "labels": {}});
        let presence =
            json!({"version": PROTOCOL_VERSION, "client": "c", "worker": "w", "capabilities": capabilities});
        let many: BTreeMap<_, _> = (0..65).map(|i| (i.to_string(), "x")).collect();
        refused::<Presence>(presence.clone(), "/worker", long(257));
        refused::<Presence>(presence.clone(), "/capabilities/device", long(65));
        refused::<Presence>(presence.clone(), "/capabilities/labels", json!(many));
        refused::<Presence>(presence, "/capabilities/labels", json!({"site": "x".repeat(129)}));
        let outcome = json!({"is": "failed", "reason": "x"});
        let update = json!({"version": 1, "epoch": 1, "task": "t", "outcome": outcome, "fetched": []});
        let transfer = json!({"direction": "up", "kind": "control", "size": 1});
        refused::<Update>(update.clone(), "/task", long(513));
        refused::<Update>(update, "/fetched", json!(vec![transfer; 1025]));
        let digest = crate::Digest::of("x");
        let file = |name: &str| json!({"name": name, "digest": digest, "size": 1, "kind": "artifacts"});
        let version = json!({"version": 1, "name": "m", "number": 1, "method": "bias", "manifest": digest,
                             "files": [file("a")], "published_ms": 1});
        refused::<ModelVersion>(version.clone(), "/method", long(257));
        refused::<ModelVersion>(version.clone(), "/files", json!(vec![file("a"); 65]));
        refused::<ModelVersion>(version, "/files/0/name", long(129));
    }
}
