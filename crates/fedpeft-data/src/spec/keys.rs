//! The section as it is written: one flat table, whose `kind` says which keys it may have.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Columns, DataSpec, Fraction, HeldOut, IdxFiles, LabelSource, Source, Split};
use crate::partition::PartitionSpec;

/// Share of a single source that is held out where nothing else is said.
const TEST_FRACTION: f64 = 0.2;
/// Height and width of images where nothing else is said.
const IMAGE_SIZE: u32 = 224;
/// Largest of them.
const MAX_IMAGE_SIZE: u32 = 1 << 11;

/// Format of the data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Idx,
    ImageFolder,
    TextFolder,
    Csv,
    Jsonl,
}

/// What the label columns hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LabelsKey {
    #[default]
    Class,
    MultiLabel,
    Regression,
    Tokens,
}

/// One column or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Keys {
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    train_images: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    train_labels: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    test_images: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    test_labels: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    train: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    test: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    test_fraction: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delimiter: Option<char>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<OneOrMore>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<LabelsKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    separator: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    class_names: Vec<String>,
    classes: u32,
    clients: u32,
    samples_per_client: u32,
    partition: PartitionSpec,
    min_examples: u32,
    eval_examples: u32,
    validation_examples: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_holdout: Option<f64>,
    seed: u64,
}

impl Default for Keys {
    fn default() -> Self {
        DataSpec::default().into()
    }
}

impl Keys {
    /// Keys that are given and belong to some kinds only.
    fn given(&self) -> Vec<&'static str> {
        let keys = [
            ("train_images", self.train_images.is_some()),
            ("train_labels", self.train_labels.is_some()),
            ("test_images", self.test_images.is_some()),
            ("test_labels", self.test_labels.is_some()),
            ("train", self.train.is_some()),
            ("test", self.test.is_some()),
            ("test_fraction", self.test_fraction.is_some()),
            ("image_size", self.image_size.is_some()),
            ("delimiter", self.delimiter.is_some()),
            ("text", self.text.is_some()),
            ("label", self.label.is_some()),
            ("labels", self.labels.is_some()),
            ("separator", self.separator.is_some()),
        ];
        keys.into_iter().filter(|(_, given)| *given).map(|(key, _)| key).collect()
    }

    fn split(&mut self) -> Result<Split, String> {
        let train = self.train.take().ok_or("train is missing: name the training examples")?;
        let test = match (self.test.take(), self.test_fraction) {
            (Some(_), Some(_)) => return Err("test and test_fraction are both given: keep one".to_owned()),
            (Some(path), None) => HeldOut::Path(path),
            (None, fraction) => {
                let value = fraction.unwrap_or(TEST_FRACTION);
                let wrong = || format!("test_fraction is {value}: it must lie between 0 and 1");
                HeldOut::Fraction(Fraction::new(value).ok_or_else(wrong)?)
            }
        };
        Ok(Split { train, test })
    }

    fn columns(&mut self) -> Result<Columns, String> {
        let kind = self.labels.unwrap_or_default();
        let columns = match (self.label.take(), kind) {
            (Some(_), LabelsKey::Tokens) => {
                return Err("label is given, but labels = \"tokens\" needs none".into());
            }
            (None, LabelsKey::Tokens) => Vec::new(),
            (None, _) => vec!["label".to_owned()],
            (Some(OneOrMore::One(column)), _) => vec![column],
            (Some(OneOrMore::More(columns)), _) => columns,
        };
        if self.separator.is_some() && kind != LabelsKey::MultiLabel {
            return Err("separator is for labels = \"multi_label\"".to_owned());
        }
        let one = || match columns.as_slice() {
            [column] => Ok(column.clone()),
            _ => Err("label must be one column: several are for labels = \"regression\"".to_owned()),
        };
        let labels = match kind {
            LabelsKey::Class => LabelSource::Class { column: one()? },
            LabelsKey::MultiLabel => {
                let separator = self.separator.take().unwrap_or_else(|| ";".to_owned());
                if separator.is_empty() {
                    return Err("separator is empty".to_owned());
                }
                LabelSource::MultiLabel { column: one()?, separator }
            }
            LabelsKey::Regression if columns.is_empty() => return Err("label names no column".to_owned()),
            LabelsKey::Regression => LabelSource::Regression { columns },
            LabelsKey::Tokens => LabelSource::Tokens,
        };
        Ok(Columns { text: self.text.take().unwrap_or_else(|| "text".to_owned()), labels })
    }
}

impl TryFrom<Keys> for DataSpec {
    type Error = String;

    fn try_from(mut keys: Keys) -> Result<Self, String> {
        const SPLIT: [&str; 3] = ["train", "test", "test_fraction"];
        const COLUMNS: [&str; 4] = ["text", "label", "labels", "separator"];
        let (name, allowed): (_, &[&[&str]]) = match keys.kind {
            Kind::Idx => ("idx", &[&["train_images", "train_labels", "test_images", "test_labels"]]),
            Kind::ImageFolder => ("image_folder", &[&SPLIT, &["image_size"]]),
            Kind::TextFolder => ("text_folder", &[&SPLIT]),
            Kind::Csv => ("csv", &[&SPLIT, &COLUMNS, &["delimiter"]]),
            Kind::Jsonl => ("jsonl", &[&SPLIT, &COLUMNS]),
        };
        if let Some(foreign) = keys.given().into_iter().find(|key| !allowed.concat().contains(key)) {
            return Err(format!(
                "kind = {name:?} has no key {foreign}; it has {}",
                allowed.concat().join(", ")
            ));
        }
        let client_holdout = match keys.client_holdout {
            None => None,
            Some(share) => {
                let wrong = || format!("client_holdout is {share}: it must lie above 0 and at most at 0.5");
                Some(Fraction::new(share).filter(|share| share.get() <= 0.5).ok_or_else(wrong)?)
            }
        };
        let source = match keys.kind {
            Kind::Idx => Source::Idx(IdxFiles {
                train_images: keys.train_images.take(),
                train_labels: keys.train_labels.take(),
                test_images: keys.test_images.take(),
                test_labels: keys.test_labels.take(),
            }),
            Kind::ImageFolder => {
                let image_size = keys.image_size.unwrap_or(IMAGE_SIZE);
                if !(1..=MAX_IMAGE_SIZE).contains(&image_size) {
                    return Err(format!("image_size is {image_size}: it must be 1 to {MAX_IMAGE_SIZE}"));
                }
                Source::ImageFolder { split: keys.split()?, image_size }
            }
            Kind::TextFolder => Source::TextFolder(keys.split()?),
            Kind::Csv => {
                let delimiter = keys.delimiter.unwrap_or(',');
                if !delimiter.is_ascii() || matches!(delimiter, '"' | '\n' | '\r') {
                    return Err(format!(
                        "delimiter {delimiter:?} is no ASCII character that may separate columns"
                    ));
                }
                Source::Csv { split: keys.split()?, columns: keys.columns()?, delimiter }
            }
            Kind::Jsonl => Source::Jsonl { split: keys.split()?, columns: keys.columns()? },
        };
        Ok(Self {
            source,
            classes: keys.classes,
            class_names: keys.class_names,
            clients: keys.clients,
            samples_per_client: keys.samples_per_client,
            partition: keys.partition,
            min_examples: keys.min_examples,
            eval_examples: keys.eval_examples,
            validation_examples: keys.validation_examples,
            client_holdout,
            seed: keys.seed,
        })
    }
}

impl From<DataSpec> for Keys {
    fn from(spec: DataSpec) -> Self {
        let mut keys = Self {
            kind: Kind::Idx,
            train_images: None,
            train_labels: None,
            test_images: None,
            test_labels: None,
            train: None,
            test: None,
            test_fraction: None,
            image_size: None,
            delimiter: None,
            text: None,
            label: None,
            labels: None,
            separator: None,
            class_names: spec.class_names,
            classes: spec.classes,
            clients: spec.clients,
            samples_per_client: spec.samples_per_client,
            partition: spec.partition,
            min_examples: spec.min_examples,
            eval_examples: spec.eval_examples,
            validation_examples: spec.validation_examples,
            client_holdout: spec.client_holdout.map(Fraction::get),
            seed: spec.seed,
        };
        let (kind, split, columns) = match spec.source {
            Source::Idx(files) => {
                keys.train_images = files.train_images;
                keys.train_labels = files.train_labels;
                keys.test_images = files.test_images;
                keys.test_labels = files.test_labels;
                (Kind::Idx, None, None)
            }
            Source::ImageFolder { split, image_size } => {
                keys.image_size = Some(image_size);
                (Kind::ImageFolder, Some(split), None)
            }
            Source::TextFolder(split) => (Kind::TextFolder, Some(split), None),
            Source::Csv { split, columns, delimiter } => {
                keys.delimiter = Some(delimiter);
                (Kind::Csv, Some(split), Some(columns))
            }
            Source::Jsonl { split, columns } => (Kind::Jsonl, Some(split), Some(columns)),
        };
        keys.kind = kind;
        if let Some(split) = split {
            keys.train = Some(split.train);
            match split.test {
                HeldOut::Path(path) => keys.test = Some(path),
                HeldOut::Fraction(fraction) => keys.test_fraction = Some(fraction.get()),
            }
        }
        if let Some(columns) = columns {
            keys.text = Some(columns.text);
            let (kind, label) = match columns.labels {
                LabelSource::Class { column } => (LabelsKey::Class, Some(OneOrMore::One(column))),
                LabelSource::MultiLabel { column, separator } => {
                    keys.separator = Some(separator);
                    (LabelsKey::MultiLabel, Some(OneOrMore::One(column)))
                }
                LabelSource::Regression { columns } => {
                    (LabelsKey::Regression, Some(OneOrMore::More(columns)))
                }
                LabelSource::Tokens => (LabelsKey::Tokens, None),
            };
            (keys.labels, keys.label) = (Some(kind), label);
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DataSpec, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn specifications_round_trip() {
        for text in [
            "clients = 4\npartition = { kind = \"iid\" }",
            "client_holdout = 0.2",
            "train_images = \"a\"\nseed = 3",
            "kind = \"image_folder\"\ntrain = \"a\"\ntest = \"b\"\nimage_size = 64",
            "kind = \"text_folder\"\ntrain = \"a\"\nclass_names = [\"x\", \"y\"]\nclasses = 2",
            "kind = \"csv\"\ntrain = \"a\"\ntest_fraction = 0.1\nlabel = \"topic\"\ndelimiter = \"\\t\"",
            "kind = \"csv\"\ntrain = \"a\"\nlabels = \"regression\"\nlabel = [\"x\", \"y\"]",
            "kind = \"jsonl\"\ntrain = \"a\"\nlabels = \"multi_label\"\nseparator = \"|\"",
            "kind = \"jsonl\"\ntrain = \"a\"\nlabels = \"tokens\"",
        ] {
            let spec = parse(text).unwrap();
            assert_eq!(parse(&toml::to_string(&spec).unwrap()).unwrap(), spec, "{text}");
        }
        assert_eq!(parse("").unwrap(), DataSpec::default());
    }

    #[test]
    fn the_unknown_and_the_contradictory_are_named() {
        for (text, said) in [
            ("client = 4", "client"),
            ("kind = \"png\"", "png"),
            ("kind = \"csv\"", "train is missing"),
            ("kind = \"csv\"\ntrain_images = \"a\"", "no key train_images"),
            ("train = \"a\"", "\"idx\" has no key train;"),
            ("kind = \"text_folder\"\ntrain = \"a\"\nlabel = \"x\"", "no key label"),
            ("kind = \"csv\"\ntrain = \"a\"\ntest = \"b\"\ntest_fraction = 0.5", "keep one"),
            ("kind = \"csv\"\ntrain = \"a\"\ntest_fraction = 1.0", "between 0 and 1"),
            ("kind = \"csv\"\ntrain = \"a\"\ntest_fraction = nan", "between 0 and 1"),
            ("kind = \"csv\"\ntrain = \"a\"\nlabel = [\"a\", \"b\"]", "one column"),
            ("kind = \"csv\"\ntrain = \"a\"\nseparator = \";\"", "multi_label"),
            ("kind = \"csv\"\ntrain = \"a\"\ndelimiter = \"é\"", "delimiter"),
            ("kind = \"jsonl\"\ntrain = \"a\"\ndelimiter = \",\"", "no key delimiter"),
            ("kind = \"image_folder\"\ntrain = \"a\"\nimage_size = 0", "image_size"),
            ("client_holdout = 0.0", "above 0"),
            ("client_holdout = 0.6", "at most at 0.5"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
