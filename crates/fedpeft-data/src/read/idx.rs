//! The IDX format: a magic number, big-endian dimensions, unsigned bytes; plain or gzip.
//!
//! Files are untrusted. A header's sizes are bounded before they are believed, and memory grows with the
//! bytes that arrive rather than with the bytes that were announced.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

const IMAGES_MAGIC: u32 = 0x0000_0803;
const LABELS_MAGIC: u32 = 0x0000_0801;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Largest payload that is read, in bytes.
const MAX_BYTES: u64 = 4 << 30;
/// Largest side of an image.
const MAX_SIDE: u32 = 1 << 14;

/// What is wrong with an IDX file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdxError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The compressed stream is damaged.
    #[error("{}: damaged gzip stream: {source}", path.display())]
    Gzip {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The magic number is another one.
    #[error("{}: not an IDX file of {content}: magic number {found:#010x}, expected {expected:#010x}", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// What was looked for: `images` or `labels`.
        content: &'static str,
        /// The magic number of `content`.
        expected: u32,
        /// The magic number of the file.
        found: u32,
    },
    /// The file ends early.
    #[error("{}: truncated: expected {expected} bytes (uncompressed), found {found}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header announces, itself included.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The file goes on after its last example.
    #[error("{}: more than the {expected} bytes (uncompressed) that its header announces", path.display())]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Bytes that the header announces, itself included.
        expected: u64,
    },
    /// A dimension is zero or beyond the limit.
    #[error("{}: implausible dimensions {dimensions:?}: every one must be at least 1, image sides at most {MAX_SIDE}, \
             all bytes together at most {MAX_BYTES}", path.display())]
    Dimensions {
        /// The file.
        path: PathBuf,
        /// Dimensions of the header.
        dimensions: Vec<u32>,
    },
}

/// The images of an IDX file, as stored.
#[derive(Debug)]
pub(crate) struct RawImages {
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// `[N, height, width]`.
    pub pixels: Vec<u8>,
}

/// Reads images `[N, H, W]` of unsigned bytes.
pub(crate) fn read_images(path: &Path) -> Result<RawImages, IdxError> {
    let (dimensions, pixels) = read::<3>(path, IMAGES_MAGIC, "images")?;
    let [_, height, width] = dimensions;
    Ok(RawImages { height: height as usize, width: width as usize, pixels })
}

/// Reads labels `[N]` of unsigned bytes.
pub(crate) fn read_labels(path: &Path) -> Result<Vec<u8>, IdxError> {
    read::<1>(path, LABELS_MAGIC, "labels").map(|(_, labels)| labels)
}

fn read<const D: usize>(
    path: &Path,
    magic: u32,
    content: &'static str,
) -> Result<([u32; D], Vec<u8>), IdxError> {
    let at_path = |source| IdxError::Read { path: path.to_owned(), source };
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(at_path)?);
    if file.fill_buf().map_err(at_path)?.starts_with(&GZIP_MAGIC) {
        decode(MultiGzDecoder::new(file), path, magic, content)
    } else {
        decode(file, path, magic, content)
    }
}

fn decode<const D: usize>(
    mut source: impl Read,
    path: &Path,
    magic: u32,
    content: &'static str,
) -> Result<([u32; D], Vec<u8>), IdxError> {
    let header_len = 4 + 4 * D as u64;
    let header = read_at_most(&mut source, header_len, path)?;
    let truncated = |expected, found| IdxError::Truncated { path: path.to_owned(), expected, found };

    let mut words =
        header.chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    let found = words.next().ok_or_else(|| truncated(header_len, header.len() as u64))?;
    if found != magic {
        return Err(IdxError::Magic { path: path.to_owned(), content, expected: magic, found });
    }
    let mut dimensions = [0; D];
    for dimension in &mut dimensions {
        *dimension = words.next().ok_or_else(|| truncated(header_len, header.len() as u64))?;
    }

    let len = payload_len(&dimensions)
        .ok_or_else(|| IdxError::Dimensions { path: path.to_owned(), dimensions: dimensions.to_vec() })?;
    let payload = read_at_most(&mut source, len, path)?;
    if (payload.len() as u64) < len {
        return Err(truncated(header_len + len, header_len + payload.len() as u64));
    }
    // Reading past the end also makes the decoder verify gzip's checksum.
    if !read_at_most(&mut source, 1, path)?.is_empty() {
        return Err(IdxError::Trailing { path: path.to_owned(), expected: header_len + len });
    }
    Ok((dimensions, payload))
}

fn payload_len(dimensions: &[u32]) -> Option<u64> {
    let sides = dimensions.get(1..).unwrap_or_default();
    if dimensions.contains(&0) || sides.iter().any(|side| *side > MAX_SIDE) {
        return None;
    }
    let len = dimensions.iter().try_fold(1_u64, |product, side| product.checked_mul(u64::from(*side)))?;
    (len <= MAX_BYTES).then_some(len)
}

/// Up to `len` bytes; fewer when the source, or the compressed stream behind it, ends first.
fn read_at_most(source: &mut impl Read, len: u64, path: &Path) -> Result<Vec<u8>, IdxError> {
    let mut bytes = Vec::new();
    match source.take(len).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        // A gzip stream cut short: what it gave so far tells by how much.
        Err(source) if source.kind() == io::ErrorKind::UnexpectedEof && (bytes.len() as u64) < len => {
            Ok(bytes)
        }
        Err(source) => match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                Err(IdxError::Gzip { path: path.to_owned(), source })
            }
            _ => Err(IdxError::Read { path: path.to_owned(), source }),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    pub(crate) fn images_file(count: u32, height: u32, width: u32, pixels: &[u8]) -> Vec<u8> {
        let words = [IMAGES_MAGIC, count, height, width];
        words.iter().flat_map(|word| word.to_be_bytes()).chain(pixels.iter().copied()).collect()
    }

    pub(crate) fn labels_file(labels: &[u8]) -> Vec<u8> {
        let words = [LABELS_MAGIC, labels.len() as u32];
        words.iter().flat_map(|word| word.to_be_bytes()).chain(labels.iter().copied()).collect()
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn with_file<T>(bytes: &[u8], read: impl Fn(&Path) -> T) -> T {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    }

    #[test]
    fn plain_and_compressed_files_read_alike() {
        let plain = images_file(2, 2, 3, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255]);
        for bytes in [gzip(&plain), plain] {
            let images = with_file(&bytes, read_images).unwrap();
            assert_eq!((images.height, images.width), (2, 3));
            assert_eq!(images.pixels, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255]);
        }
        assert_eq!(with_file(&labels_file(&[3, 1, 4]), read_labels).unwrap(), [3, 1, 4]);
    }

    #[test]
    fn a_truncated_file_says_how_much_is_missing() {
        let whole = images_file(2, 4, 4, &[7; 32]);
        for cut in [2, 9, 16, 40] {
            let error = with_file(&whole[..cut], read_images).unwrap_err();
            let IdxError::Truncated { expected, found, .. } = error else { panic!("{error}") };
            assert_eq!(found, cut as u64);
            assert_eq!(expected, if cut < 16 { 16 } else { 48 });
        }
        let noise: Vec<u8> = (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let packed = gzip(&images_file(1, 64, 64, &noise));
        let error = with_file(&packed[..packed.len() / 2], read_images).unwrap_err();
        let IdxError::Truncated { expected: 4112, found, .. } = error else { panic!("{error}") };
        assert!(found < 4112);
    }

    #[test]
    fn wrong_files_are_named() {
        let labels = labels_file(&[1]);
        assert!(matches!(with_file(&labels, read_images).unwrap_err(), IdxError::Magic { .. }));
        let long = [labels, vec![0]].concat();
        assert!(matches!(with_file(&long, read_labels).unwrap_err(), IdxError::Trailing { expected: 9, .. }));
        for (count, height, width) in [(0, 1, 1), (1, 0, 1), (1, 1 << 20, 1), (u32::MAX, 1 << 14, 1 << 14)] {
            let error = with_file(&images_file(count, height, width, &[]), read_images).unwrap_err();
            assert!(matches!(error, IdxError::Dimensions { .. }), "{error}");
        }
        let mut packed = gzip(&labels_file(&[1, 2, 3]));
        let checksum = packed.len() - 8;
        packed[checksum] ^= 1;
        assert!(matches!(with_file(&packed, read_labels).unwrap_err(), IdxError::Gzip { .. }));
        let missing = read_labels(Path::new("no/such/file")).unwrap_err();
        assert!(missing.to_string().starts_with("no/such/file: cannot be read"));
    }

    #[test]
    fn announced_sizes_are_not_allocated() {
        // 4 GiB announced, 3 bytes there.
        let error = with_file(&images_file(16, 1 << 14, 1 << 14, &[1, 2, 3]), read_images).unwrap_err();
        assert!(matches!(error, IdxError::Truncated { found: 19, .. }), "{error}");
    }

    #[test]
    fn a_stream_is_not_inflated_beyond_what_its_header_announces() {
        // Sixteen megabytes of nothing in sixteen kilobytes, under a header of one image of four bytes.
        let packed = gzip(&images_file(1, 2, 2, &vec![0; 16 << 20]));
        assert!(packed.len() < 1 << 17, "{}", packed.len());
        let error = with_file(&packed, read_images).unwrap_err();
        assert!(matches!(error, IdxError::Trailing { expected: 20, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = with_file(&bytes, read_images);
            let _ = with_file(&bytes, read_labels);
        }

        #[test]
        fn damage_never_yields_a_wrong_count(
            at in 0_usize..100, value in any::<u8>(), cut in 0_usize..200, packed in any::<bool>()
        ) {
            let plain = images_file(3, 5, 4, &[9; 60]);
            let mut bytes = if packed { gzip(&plain) } else { plain };
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(cut);
            if let Ok(images) = with_file(&bytes, read_images) {
                prop_assert_eq!(images.pixels.len() % (images.height * images.width), 0);
            }
        }
    }
}
