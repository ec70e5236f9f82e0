//! A dataset dealt out to clients, with a validation split and held-out examples.

use std::sync::Arc;

use crate::dataset::Dataset;
use crate::draw::{Draw, Purpose};
use crate::error::DataError;
use crate::labels::LabelKind;
use crate::partition::Partition;
use crate::prepare::{FitError, Input, Prepared, TextInput};
use crate::read::{Test, read};
use crate::spec::DataSpec;
use crate::split::{held_back, stratified};
use crate::table::ClassTable;

/// A dataset dealt out. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Federation {
    train: Arc<Dataset>,
    test: Arc<Dataset>,
    partition: Arc<Partition>,
    validation: Arc<[u32]>,
    held_out: Arc<[u32]>,
    /// What each client trains on and what it holds back, where it does.
    halves: Option<Arc<[Halves]>>,
}

/// Training examples of a client, and those it holds back.
type Halves = (Arc<[u32]>, Arc<[u32]>);

impl Federation {
    /// Reads the files and deals their examples out. Blocks while it reads.
    pub fn load(spec: &DataSpec) -> Result<Self, DataError> {
        let (train, test) = read(spec)?;
        let train = Arc::new(train);
        let strata = train.labels.strata();
        if matches!(train.labels.kind(), LabelKind::Regression(_) | LabelKind::Tokens) {
            spec.partition.check_without_classes()?;
        }
        let (mut pool, test, mut held_out) = match test {
            Test::Own(test) => {
                let held_out = positions(&test);
                (positions(&train), Arc::new(test), held_out)
            }
            Test::Share(fraction) => {
                let (pool, held_out) = stratified(&strata, fraction, spec.seed);
                (pool, train.clone(), held_out)
            }
        };

        let asked = spec.eval_examples;
        if asked as usize > held_out.len() || held_out.is_empty() {
            let (path, available) = (test.path.clone(), held_out.len());
            return Err(DataError::HeldOut { path, asked, available });
        }
        Draw::new(spec.seed, Purpose::HeldOut).shuffle(&mut held_out);
        if asked > 0 {
            held_out.truncate(asked as usize);
        }

        let asked = spec.validation_examples;
        Draw::new(spec.seed, Purpose::Pool).shuffle(&mut pool);
        // From the end: clients take from the front, so a larger split seldom moves their examples.
        let Some(kept) = pool.len().checked_sub(asked as usize).filter(|kept| *kept > 0) else {
            let (path, available) = (train.path.clone(), pool.len());
            return Err(DataError::Validation { path, asked, available });
        };
        let validation = pool.split_off(kept);

        let partition = spec.partition.deal(&pool, &strata.of, &spec.deal())?;
        let halves = spec.client_holdout.map(|fraction| {
            let mut draw = Draw::new(spec.seed, Purpose::ClientHoldout);
            let each = partition.clients().iter().map(|examples| {
                let (train, held) = held_back(examples, &strata.of, fraction, &mut draw);
                (train.into(), held.into())
            });
            each.collect()
        });
        Ok(Self {
            train,
            test,
            partition: Arc::new(partition),
            validation: validation.into(),
            held_out: held_out.into(),
            halves,
        })
    }

    /// Clients there are.
    pub fn clients(&self) -> usize {
        self.partition.clients().len()
    }

    /// What client `position` trains on; `None` when there is no such client.
    pub fn client(&self, position: usize) -> Option<ClientData> {
        let examples = match &self.halves {
            None => self.partition.clients().get(position)?.as_slice().into(),
            Some(halves) => halves.get(position)?.0.clone(),
        };
        Some(ClientData { dataset: self.train.clone(), examples })
    }

    /// What client `position` holds back to evaluate its own model on, if anything.
    pub fn client_holdout(&self, position: usize) -> Option<ClientData> {
        let examples = self.halves.as_ref()?.get(position)?.1.clone();
        let held = ClientData { dataset: self.train.clone(), examples };
        (!held.is_empty()).then_some(held)
    }

    /// Training examples that no client holds, to choose hyperparameters on. May be empty.
    pub fn validation(&self) -> ClientData {
        ClientData { dataset: self.train.clone(), examples: self.validation.clone() }
    }

    /// Held-out examples.
    pub fn held_out(&self) -> ClientData {
        ClientData { dataset: self.test.clone(), examples: self.held_out.clone() }
    }

    /// Who holds which training examples.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Who holds how many examples of which class.
    pub fn table(&self) -> ClassTable {
        ClassTable::new(&self.partition, &self.train.labels.strata(), &self.train.class_names)
    }

    /// What examples are labelled with.
    pub fn label_kind(&self) -> LabelKind {
        self.train.labels.kind()
    }

    /// What the classes are called, in order; empty where they are numbers.
    pub fn class_names(&self) -> &[String] {
        &self.train.class_names
    }
}

/// All of a dataset. The readers' bounds keep examples far below 2^32.
fn positions(dataset: &Dataset) -> Vec<u32> {
    (0..dataset.len() as u32).collect()
}

/// Some examples of a dataset. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientData {
    dataset: Arc<Dataset>,
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

    /// What they are labelled with.
    pub fn label_kind(&self) -> LabelKind {
        self.dataset.labels.kind()
    }

    /// Makes all of these hold their own examples and no others of their datasets, whose memory is free when nobody else
    /// holds them.
    pub fn hold_only<'a>(all: impl IntoIterator<Item = &'a mut Self>) {
        let mut parts: Vec<(Arc<Dataset>, Vec<&mut Self>)> = Vec::new();
        for data in all {
            match parts.iter_mut().find(|(dataset, _)| Arc::ptr_eq(dataset, &data.dataset)) {
                Some((_, holders)) => holders.push(data),
                None => parts.push((data.dataset.clone(), vec![data])),
            }
        }
        for (dataset, holders) in parts {
            let examples = holders.iter().flat_map(|data| data.examples.iter().copied()).collect();
            let dataset = Arc::new(dataset.only(&examples));
            holders.into_iter().for_each(|data| data.dataset = dataset.clone());
        }
    }

    /// Fits images to a model's input.
    pub fn prepare_images(&self, input: &Input) -> Result<Prepared, FitError> {
        Prepared::images(self.clone(), input.clone())
    }

    /// Makes tokens of texts, all of them now.
    pub fn prepare_texts(&self, input: &TextInput<'_>) -> Result<Prepared, FitError> {
        Prepared::texts(self.clone(), input)
    }

    pub(crate) fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Where the example at `index`, below [`Self::len`], is in the dataset.
    pub(crate) fn position(&self, index: usize) -> usize {
        self.examples[index] as usize
    }

    /// Where the examples are in the dataset.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> {
        self.examples.iter().map(|example| *example as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::dataset::Content;
    use crate::images::Images;
    use crate::labels::Labels;
    use crate::partition::PartitionSpec;
    use crate::prepare::{BatchError, Column};
    use crate::read::idx::tests::{gzip, images_file, labels_file};
    use crate::spec::{IdxFiles, Source};

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
        let files = IdxFiles {
            train_images: write("a", gzip(&images_file(60, 2, 2, &pixels(60)))),
            train_labels: write("b", labels_file(&labels(60))),
            test_images: write("c", images_file(20, 2, 2, &pixels(20))),
            test_labels: write("d", gzip(&labels_file(&labels(20)))),
        };
        let spec = DataSpec {
            source: Source::Idx(files),
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
    fn clients_hold_back_what_they_are_told_to() {
        let (_folder, spec) = dataset();
        let all = Federation::load(&spec).unwrap();
        assert!(all.client_holdout(0).is_none());
        let held = crate::spec::Fraction::new(0.3);
        let federation = Federation::load(&DataSpec { client_holdout: held, ..spec }).unwrap();
        for client in 0..4 {
            let (train, held) =
                (federation.client(client).unwrap(), federation.client_holdout(client).unwrap());
            assert_eq!((train.len(), held.len()), (7, 3));
            let mut both: Vec<u32> = train.examples.iter().chain(&*held.examples).copied().collect();
            let mut whole = all.client(client).unwrap().examples.to_vec();
            both.sort_unstable();
            whole.sort_unstable();
            assert_eq!(both, whole, "nobody else's");
        }
        assert!(federation.client(4).is_none() && federation.client_holdout(4).is_none());
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
        let mut alone = [data.clone(), Federation::load(&spec).unwrap().client(1).unwrap(), data.clone()];
        ClientData::hold_only(&mut alone);
        let Content::Images(images) = &alone[0].dataset.content else { panic!("not images") };
        assert_eq!(images.len(), 10, "the second is of another dataset");
        let data = alone[2].clone();
        let prepared = data.prepare_images(&input).unwrap();
        let mut pixels = vec![f32::NAN; 2 * input.values()];
        let mut labels = [-1; 2];
        prepared.fill(&[7, 2], &mut [Column::F32(&mut pixels)], Column::I64(&mut labels)).unwrap();
        for (place, index) in [7, 2].into_iter().enumerate() {
            // The pixels of an image say which it is.
            let position = data.position(index);
            assert_eq!(labels[place], (position % 3) as i64);
            let gray = position as f32 / 255.0;
            let planes = &pixels[place * 36..][..36];
            for (plane, want) in planes.chunks(12).zip([gray, (gray - 0.5) / 0.5, (gray - 0.25) / 2.0]) {
                assert!(plane.iter().all(|value| (value - want).abs() < 1e-6), "{plane:?} {want}");
            }
        }

        let values = input.values();
        let fill = |indices: &[usize], pixels: usize, labels: usize| {
            let (mut pixels, mut labels) = (vec![0.0; pixels], vec![0; labels]);
            prepared.fill(indices, &mut [Column::F32(&mut pixels)], Column::I64(&mut labels)).unwrap_err()
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
        assert!(matches!(
            refuse(DataSpec { classes: 0, ..spec.clone() }),
            DataError::Classes { classes: 0, .. }
        ));
        let error = refuse(DataSpec { classes: 2, ..spec.clone() });
        assert!(matches!(error, DataError::Label { example: 2, label: 2, classes: 2, .. }), "{error}");
        let with = |change: fn(&mut IdxFiles, PathBuf), path: PathBuf| {
            let Source::Idx(mut files) = spec.source.clone() else { panic!("not IDX") };
            change(&mut files, path);
            DataSpec { source: Source::Idx(files), ..spec.clone() }
        };
        let error = refuse(with(|files, path| files.train_labels = Some(path), folder.path().join("d")));
        assert!(matches!(error, DataError::Count { images: 60, labels: 20, .. }), "{error}");
        assert!(matches!(refuse(DataSpec { clients: 5, ..spec.clone() }), DataError::Partition(_)));

        let wide = folder.path().join("wide");
        fs::write(&wide, images_file(20, 1, 4, &[0; 80])).unwrap();
        let error = refuse(with(|files, path| files.test_images = Some(path), wide));
        assert!(matches!(error, DataError::Sizes { train: (2, 2), test: (1, 4) }), "{error}");
    }

    #[test]
    fn resizing_blends_neighbours() {
        let dataset = Dataset {
            path: "images".into(),
            content: Content::Images(Images::new(1, 2, 2, vec![0, 100, 200, 255]).into()),
            labels: Labels::Classes { classes: 1, values: vec![0] },
            class_names: Vec::new(),
        };
        let data = ClientData { dataset: Arc::new(dataset), examples: Arc::new([0]) };
        let input = Input::new(&[1, 4, 4], &[0.0], &[1.0 / 255.0]).unwrap();
        let mut pixels = [0.0; 16];
        let prepared = data.prepare_images(&input).unwrap();
        prepared.fill(&[0], &mut [Column::F32(&mut pixels)], Column::I64(&mut [0])).unwrap();
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
