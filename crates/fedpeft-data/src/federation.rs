//! A dataset dealt out to clients, with a validation split and held-out examples.

use std::sync::Arc;

use crate::draw::{Draw, Purpose};
use crate::images::{DataError, Images};
use crate::partition::Partition;
use crate::prepare::{Input, Prepared};
use crate::spec::DataSpec;
use crate::table::ClassTable;

/// A dataset dealt out. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Federation {
    train: Arc<Images>,
    test: Arc<Images>,
    partition: Arc<Partition>,
    validation: Arc<[u32]>,
    held_out: Arc<[u32]>,
}

impl Federation {
    /// Reads the files and deals their examples out. Blocks while it reads.
    pub fn load(spec: &DataSpec) -> Result<Self, DataError> {
        let files = spec.files()?;
        let train = Images::read_idx(&files.train_images, &files.train_labels, spec.classes)?;
        let test = Images::read_idx(&files.test_images, &files.test_labels, spec.classes)?;
        if train.size() != test.size() {
            return Err(DataError::Sizes { train: train.size(), test: test.size() });
        }

        let asked = spec.eval_examples;
        if asked as usize > test.len() {
            return Err(DataError::HeldOut { path: files.test_images, asked, available: test.len() });
        }
        let mut held_out = shuffled(test.len(), spec.seed, Purpose::HeldOut);
        if asked > 0 {
            held_out.truncate(asked as usize);
        }

        let asked = spec.validation_examples;
        let mut pool = shuffled(train.len(), spec.seed, Purpose::Pool);
        // From the end: clients take from the front, so a larger split seldom moves their examples.
        let Some(kept) = pool.len().checked_sub(asked as usize).filter(|kept| *kept > 0) else {
            return Err(DataError::Validation { path: files.train_images, asked, available: train.len() });
        };
        let validation = pool.split_off(kept);

        let partition = spec.partition.deal(&pool, train.labels(), &spec.deal())?;
        Ok(Self {
            train: Arc::new(train),
            test: Arc::new(test),
            partition: Arc::new(partition),
            validation: validation.into(),
            held_out: held_out.into(),
        })
    }

    /// Clients there are.
    pub fn clients(&self) -> usize {
        self.partition.clients().len()
    }

    /// What client `position` trains on; `None` when there is no such client.
    pub fn client(&self, position: usize) -> Option<ClientData> {
        let examples = self.partition.clients().get(position)?;
        Some(ClientData { images: self.train.clone(), examples: examples.as_slice().into() })
    }

    /// Training images that no client holds, to choose hyperparameters on. May be empty.
    pub fn validation(&self) -> ClientData {
        ClientData { images: self.train.clone(), examples: self.validation.clone() }
    }

    /// Images from the held-out file.
    pub fn held_out(&self) -> ClientData {
        ClientData { images: self.test.clone(), examples: self.held_out.clone() }
    }

    /// Who holds which examples of the training file.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Who holds how many examples of which class.
    pub fn table(&self) -> ClassTable {
        ClassTable::new(&self.partition, self.train.labels(), self.classes())
    }

    /// Classes; labels are `0..classes`.
    pub fn classes(&self) -> u32 {
        self.train.classes()
    }
}

fn shuffled(count: usize, seed: u64, purpose: Purpose) -> Vec<u32> {
    // The reader's bound on payloads keeps counts of images far below 2^32.
    let mut positions: Vec<u32> = (0..count as u32).collect();
    Draw::new(seed, purpose).shuffle(&mut positions);
    positions
}

/// Some examples of a dataset. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientData {
    images: Arc<Images>,
    examples: Arc<[u32]>,
}

impl ClientData {
    /// Examples there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Classes; labels are `0..classes`.
    pub fn classes(&self) -> u32 {
        self.images.classes()
    }

    /// The labels, in the order of the examples.
    pub fn labels(&self) -> impl Iterator<Item = u8> {
        self.examples.iter().filter_map(|example| self.images.labels().get(*example as usize).copied())
    }

    /// Rows and columns of an image as stored.
    pub fn source_size(&self) -> (usize, usize) {
        self.images.size()
    }

    /// Fits the data to a model's input.
    pub fn prepare(&self, input: &Input) -> Prepared {
        Prepared::new(self.clone(), input.clone())
    }

    /// Pixels and label of the example at `position`.
    pub(crate) fn example(&self, position: usize) -> Option<(&[u8], u8)> {
        let example = *self.examples.get(position)? as usize;
        Some((self.images.pixels(example)?, *self.images.labels().get(example)?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::idx::tests::{gzip, images_file, labels_file};
    use crate::partition::PartitionSpec;
    use crate::prepare::BatchError;

    /// 60 training and 20 held-out images of 2x2 pixels, whose pixels tell which image they are.
    fn dataset() -> (TempDir, DataSpec) {
        let folder = TempDir::new().unwrap();
        let write = |name: &str, bytes: Vec<u8>| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            Some(path)
        };
        let pixels = |count: u8| (0..count).flat_map(|i| [i, i, i, i]).collect::<Vec<_>>();
        let labels = |count: u8| (0..count).map(|i| i % 3).collect::<Vec<_>>();
        let spec = DataSpec {
            train_images: write("a", gzip(&images_file(60, 2, 2, &pixels(60)))),
            train_labels: write("b", labels_file(&labels(60))),
            test_images: write("c", images_file(20, 2, 2, &pixels(20))),
            test_labels: write("d", gzip(&labels_file(&labels(20)))),
            classes: 3,
            clients: 4,
            samples_per_client: 10,
            eval_examples: 15,
            validation_examples: 12,
            seed: 5,
            ..DataSpec::default()
        };
        (folder, spec)
    }

    #[test]
    fn splits_are_disjoint_exact_and_repeatable() {
        let (_folder, spec) = dataset();
        let federation = Federation::load(&spec).unwrap();
        assert_eq!((federation.clients(), federation.held_out().len()), (4, 15));
        let mut seen: HashSet<u32> = federation.validation.iter().copied().collect();
        assert_eq!(seen.len(), 12);
        for example in federation.partition().clients().iter().flatten() {
            assert!(seen.insert(*example), "{example} is in two splits");
        }
        assert_eq!(seen.len(), 12 + 40);
        assert!(federation.client(4).is_none());

        let again = Federation::load(&spec).unwrap();
        assert_eq!(again.partition(), federation.partition());
        assert_eq!(
            (again.held_out, again.validation),
            (federation.held_out.clone(), federation.validation.clone())
        );
        let other = Federation::load(&DataSpec { seed: 6, ..spec }).unwrap();
        assert_ne!(other.partition(), federation.partition());
        assert_eq!(federation.table().totals().iter().sum::<u64>(), 40);
    }

    #[test]
    fn zero_means_all() {
        let (_folder, spec) = dataset();
        let all = DataSpec {
            samples_per_client: 0,
            eval_examples: 0,
            validation_examples: 0,
            min_examples: 1,
            partition: PartitionSpec::Iid {},
            ..spec
        };
        let federation = Federation::load(&all).unwrap();
        assert_eq!((federation.partition().total(), federation.held_out().len()), (60, 20));
        assert!(federation.validation().is_empty());
    }

    #[test]
    fn batches_are_resized_replicated_and_normalised() {
        let (_folder, spec) = dataset();
        let data = Federation::load(&spec).unwrap().client(0).unwrap();
        let input = Input::new(&[3, 4, 3], &[0.0, 0.5, 0.25], &[1.0, 0.5, 2.0]).unwrap();
        let prepared = data.prepare(&input);
        let mut pixels = vec![f32::NAN; 2 * input.values()];
        let mut labels = [-1; 2];
        prepared.fill_batch(&[7, 2], &mut pixels, &mut labels).unwrap();
        for (place, position) in [7, 2].into_iter().enumerate() {
            let (image, label) = data.example(position).unwrap();
            assert_eq!(labels[place], i64::from(label));
            let gray = f32::from(image[0]) / 255.0;
            let planes = &pixels[place * 36..][..36];
            for (plane, want) in planes.chunks(12).zip([gray, (gray - 0.5) / 0.5, (gray - 0.25) / 2.0]) {
                assert!(plane.iter().all(|value| (value - want).abs() < 1e-6), "{plane:?} {want}");
            }
        }

        let values = input.values();
        let fill = |indices: &[usize], pixels: usize, labels: usize| {
            prepared.fill_batch(indices, &mut vec![0.0; pixels], &mut vec![0; labels]).unwrap_err()
        };
        assert_eq!(fill(&[10], values, 1), BatchError::Index { index: 10, len: 10 });
        assert!(matches!(fill(&[1], values + 1, 1), BatchError::Length { buffer: "pixel", .. }));
        assert!(matches!(fill(&[1], values, 2), BatchError::Length { buffer: "label", .. }));
    }

    #[test]
    fn impossible_requests_are_named() {
        let (folder, spec) = dataset();
        let refuse = |spec: DataSpec| Federation::load(&spec).unwrap_err();
        assert!(matches!(refuse(DataSpec { eval_examples: 21, ..spec.clone() }), DataError::HeldOut { .. }));
        assert!(matches!(
            refuse(DataSpec { validation_examples: 60, ..spec.clone() }),
            DataError::Validation { .. }
        ));
        assert!(matches!(refuse(DataSpec { classes: 0, ..spec.clone() }), DataError::Classes(0)));
        let error = refuse(DataSpec { classes: 2, ..spec.clone() });
        assert!(matches!(error, DataError::Label { example: 2, label: 2, classes: 2, .. }), "{error}");
        let error = refuse(DataSpec { train_labels: spec.test_labels.clone(), ..spec.clone() });
        assert!(matches!(error, DataError::Count { images: 60, labels: 20, .. }), "{error}");
        assert!(matches!(refuse(DataSpec { clients: 5, ..spec.clone() }), DataError::Partition(_)));

        let wide = folder.path().join("wide");
        fs::write(&wide, images_file(20, 1, 4, &[0; 80])).unwrap();
        let error = refuse(DataSpec { test_images: Some(wide), ..spec });
        assert!(matches!(error, DataError::Sizes { train: (2, 2), test: (1, 4) }), "{error}");
    }

    #[test]
    fn resizing_blends_neighbours() {
        let folder = TempDir::new().unwrap();
        let (images, labels) = (folder.path().join("i"), folder.path().join("l"));
        fs::write(&images, images_file(1, 2, 2, &[0, 100, 200, 255])).unwrap();
        fs::write(&labels, labels_file(&[0])).unwrap();
        let images = Arc::new(Images::read_idx(&images, &labels, 1).unwrap());
        let data = ClientData { images, examples: Arc::new([0]) };
        let input = Input::new(&[1, 4, 4], &[0.0], &[1.0 / 255.0]).unwrap();
        let mut pixels = [0.0; 16];
        data.prepare(&input).fill_batch(&[0], &mut pixels, &mut [0]).unwrap();
        // PyTorch: interpolate(x, (4, 4), mode="bilinear", align_corners=False)
        #[rustfmt::skip]
        let want = [
            0.0, 25.0, 75.0, 100.0,
            50.0, 72.1875, 116.5625, 138.75,
            150.0, 166.5625, 199.6875, 216.25,
            200.0, 213.75, 241.25, 255.0,
        ];
        for (value, want) in pixels.iter().zip(want) {
            assert!((value - want).abs() < 1e-3, "{pixels:?}");
        }
    }
}
