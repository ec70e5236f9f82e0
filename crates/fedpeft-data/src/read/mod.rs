//! Reading datasets. Files are a stranger's: sizes are bounded before they are believed, and what is wrong is
//! said with the file and, in a table, the line.

mod folders;
pub(crate) mod idx;
mod pictures;
mod records;
mod table;

use std::path::Path;

pub use idx::IdxError;

use crate::dataset::{Content, Dataset};
use crate::error::DataError;
use crate::images::Images;
use crate::labels::Labels;
use crate::spec::{DataSpec, Fraction, HeldOut, Source, Split};

/// Most bytes of texts or pixels that are kept of one source.
const MAX_BYTES: u64 = 4 << 30;
/// Longest text.
const MAX_TEXT: u64 = 16 << 20;

/// Training and held-out examples.
pub(crate) fn read(spec: &DataSpec) -> Result<(Dataset, Test), DataError> {
    match &spec.source {
        Source::Idx(files) => {
            let [train_images, train_labels, test_images, test_labels] = files.located()?;
            let train = idx_dataset(&train_images, &train_labels, spec)?;
            let test = idx_dataset(&test_images, &test_labels, spec)?;
            if let (Content::Images(train), Content::Images(test)) = (&train.content, &test.content)
                && train.size() != test.size()
            {
                return Err(DataError::Sizes { train: train.size(), test: test.size() });
            }
            Ok((train, Test::Own(test)))
        }
        Source::ImageFolder { split, image_size } => {
            folders::read(split, spec, |files| pictures::read(files, *image_size))
        }
        Source::TextFolder(split) => folders::read(split, spec, records::text_files),
        Source::Csv { split, columns, delimiter } => {
            table::read(split, columns, spec, |path| records::csv(path, columns, *delimiter))
        }
        Source::Jsonl { split, columns } => {
            table::read(split, columns, spec, |path| records::jsonl(path, columns))
        }
    }
}

/// Held-out examples.
pub(crate) enum Test {
    /// From a source of their own.
    Own(Dataset),
    /// A share of the training examples.
    Share(Fraction),
}

impl Test {
    fn read(
        split: &Split,
        read: impl FnOnce(&Path) -> Result<Dataset, DataError>,
    ) -> Result<Self, DataError> {
        match &split.test {
            HeldOut::Path(path) => read(path).map(Self::Own),
            HeldOut::Fraction(fraction) => Ok(Self::Share(*fraction)),
        }
    }
}

/// Gray images and their labels, which must lie in `0..classes`.
fn idx_dataset(images_path: &Path, labels_path: &Path, spec: &DataSpec) -> Result<Dataset, DataError> {
    let classes = spec.classes;
    if classes == 0 || classes > 256 {
        return Err(DataError::Classes { classes, most: 256 });
    }
    let named = spec.class_names.len();
    if named != 0 && named != classes as usize {
        let reason = format!("lists {named} names, but classes = {classes}");
        return Err(DataError::ClassNames { reason });
    }
    let raw = idx::read_images(images_path)?;
    let labels = idx::read_labels(labels_path)?;
    let images = Images::new(1, raw.height, raw.width, raw.pixels);
    if images.len() != labels.len() {
        return Err(DataError::Count {
            images_path: images_path.to_owned(),
            labels_path: labels_path.to_owned(),
            images: images.len(),
            labels: labels.len(),
        });
    }
    let beyond = labels.iter().copied().enumerate().find(|(_, label)| u32::from(*label) >= classes);
    if let Some((example, label)) = beyond {
        return Err(DataError::Label { path: labels_path.to_owned(), example, label, classes });
    }
    Ok(Dataset {
        path: images_path.to_owned(),
        content: Content::Images(images.into()),
        labels: Labels::Classes { classes, values: labels.into_iter().map(u32::from).collect() },
        class_names: spec.class_names.clone(),
    })
}
