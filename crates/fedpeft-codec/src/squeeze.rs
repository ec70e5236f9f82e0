//! The last stage: one zstd frame (RFC 8878).
//!
//! What it expands to is declared in the frame, and never believed beyond what the adapter's layout allows: the
//! buffer has at most that size, zstd writes into it directly, and needs no window beside it.

use zstd::{bulk, zstd_safe};

use crate::CodecError;

/// Compresses `body`.
pub(crate) fn compress(body: &[u8], level: i32) -> Result<Vec<u8>, CodecError> {
    bulk::compress(body, level).map_err(|error| CodecError::Compress(error.to_string()))
}

/// Expands a frame, and nothing beside it, to at most `most` bytes.
pub(crate) fn expand(frame: &[u8], most: usize) -> Result<Vec<u8>, CodecError> {
    let damaged = CodecError::Body("its zstd frame cannot be read");
    let size = match zstd_safe::get_frame_content_size(frame) {
        Ok(Some(size)) => size,
        Ok(None) => return Err(CodecError::Body("its zstd frame does not say how long it is")),
        Err(_) => return Err(damaged),
    };
    if size > most as u64 {
        return Err(CodecError::Body("it expands to more than its layout allows"));
    }
    if zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
        return Err(CodecError::Body("something follows its zstd frame"));
    }
    let (size, mut body) = (size as usize, Vec::new());
    body.try_reserve_exact(size).map_err(|_| CodecError::Memory(size))?;
    match bulk::Decompressor::new().and_then(|mut zstd| zstd.decompress_to_buffer(frame, &mut body)) {
        Ok(written) if written == size => Ok(body),
        Ok(_) | Err(_) => Err(damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn error(frame: &[u8], most: usize) -> &'static str {
        match expand(frame, most) {
            Err(CodecError::Body(what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_compressed_comes_back() {
        for length in [0, 1, 1000, 1 << 20] {
            let body: Vec<u8> = (0..length).map(|at: usize| (at * at) as u8).collect();
            for level in [1, 3, 19] {
                assert_eq!(expand(&compress(&body, level).unwrap(), length).unwrap(), body);
            }
        }
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        // 64 MiB in two kilobytes.
        let bomb = compress(&vec![0; 64 << 20], 19).unwrap();
        assert!(bomb.len() < 10_000);
        assert!(error(&bomb, 1 << 20).contains("more than its layout allows"));
        // One that lies about its size: zstd stops at the end of the buffer.
        let honest = compress(&vec![7; 300], 3).unwrap();
        let lie = zstd_safe::get_frame_content_size(&honest);
        assert_eq!(lie.unwrap(), Some(300));
        let at =
            (0..honest.len() - 1).find(|at| honest[*at..*at + 2] == (300u16 - 256).to_le_bytes()).unwrap();
        let mut lying = honest.clone();
        lying[at] -= 1;
        assert!(error(&lying, 1000).contains("cannot be read"));
    }

    #[test]
    fn only_one_whole_frame_of_known_size_is_accepted() {
        let frame = compress(&[1; 100], 3).unwrap();
        assert!(error(&[&frame[..], &frame[..]].concat(), 1000).contains("follows"));
        assert!(error(&[&frame[..], b"x"].concat(), 1000).contains("follows"));
        for length in 0..frame.len() {
            assert!(expand(&frame[..length], 1000).is_err());
        }
        // A streaming encoder does not know the size when it begins, and asks its reader for a window instead.
        let mut unsized_frame = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        unsized_frame.write_all(&[1; 100]).unwrap();
        assert!(error(&unsized_frame.finish().unwrap(), 1000).contains("does not say"));
        // A skippable frame, RFC 8878 section 3.1.2.
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2];
        assert!(
            expand(&skippable, 1000).is_err_and(|_| true) || expand(&skippable, 1000).unwrap().is_empty()
        );
    }
}
