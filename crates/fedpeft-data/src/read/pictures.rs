//! PNG and JPEG files.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{ImageFormat, ImageReader, Limits, RgbImage};

use super::MAX_BYTES;
use crate::dataset::Content;
use crate::error::DataError;
use crate::images::Images;

/// Largest side of a file's image.
const MAX_SIDE: u32 = 1 << 14;
/// Most memory that decoding one may take: 89 million pixels. A file of kilobytes can announce sixteen times that.
const MAX_DECODED: u64 = 256 << 20;

/// Reads files as colour images of `side` by `side` pixels: the largest square in the middle, scaled linearly
/// with antialiasing.
pub(super) fn read(files: &[PathBuf], side: u32) -> Result<Content, DataError> {
    let area = side as usize * side as usize;
    let needed = files.len().saturating_mul(3 * area);
    if let Some(first) = files.first().filter(|_| needed as u64 > MAX_BYTES) {
        let reason = format!(
            "is one of {} images that take {needed} bytes at {side} pixels: lower image_size ({MAX_BYTES} is the most)",
            files.len()
        );
        return Err(DataError::Content { path: first.clone(), reason });
    }
    let mut pixels = Vec::with_capacity(needed);
    for path in files {
        let square = square(&decode(path)?, side);
        for channel in 0..3 {
            pixels.extend(square.as_raw().iter().skip(channel).step_by(3));
        }
    }
    Ok(Content::Images(Images::new(3, side as usize, side as usize, pixels).into()))
}

fn decode(path: &Path) -> Result<RgbImage, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let wrong = |reason: String| DataError::Content { path: path.to_owned(), reason };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(failed)?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err(wrong("is neither a PNG nor a JPEG file".to_owned()));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED);
    reader.limits(limits);
    let decoded =
        reader.decode().map_err(|error| wrong(format!("cannot be decoded: {error}").replace('\n', " ")))?;
    Ok(decoded.into_rgb8())
}

/// The middle square, scaled.
fn square(picture: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let shorter = width.min(height);
    let crop = imageops::crop_imm(picture, (width - shorter) / 2, (height - shorter) / 2, shorter, shorter);
    imageops::resize(&crop.to_image(), side, side, FilterType::Triangle)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, Crc, write::ZlibEncoder};

    use super::*;

    /// A PNG file that announces `side` by `side` pixels of eight bytes and compresses as much of nothing as fits
    /// a few kilobytes.
    fn bomb(side: u32) -> Vec<u8> {
        let mut nothing = ZlibEncoder::new(Vec::new(), Compression::best());
        nothing.write_all(&vec![0; 4 << 20]).unwrap();
        let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[16, 6, 0, 0, 0]].concat();
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        for (kind, data) in [(b"IHDR", header), (b"IDAT", nothing.finish().unwrap()), (b"IEND", Vec::new())] {
            let mut crc = Crc::new();
            crc.update(kind);
            crc.update(&data);
            file.extend((data.len() as u32).to_be_bytes());
            file.extend(kind);
            file.extend(data);
            file.extend(crc.sum().to_be_bytes());
        }
        file
    }

    #[test]
    fn announced_pixels_are_not_allocated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.png");
        for (side, expected) in [(MAX_SIDE, "limit"), (MAX_SIDE + 1, "limit"), (u32::MAX, "")] {
            let bytes = bomb(side);
            assert!(bytes.len() < 1 << 13);
            std::fs::write(&path, bytes).unwrap();
            let error = decode(&path).unwrap_err().to_string().to_lowercase();
            assert!(error.contains("bomb.png") && error.contains(expected), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
