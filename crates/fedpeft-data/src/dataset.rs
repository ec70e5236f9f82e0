//! Labelled examples in memory.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::images::Images;
use crate::labels::Labels;

/// Examples and what they are labelled with. As many labels as examples, at least one.
#[derive(Debug)]
pub(crate) struct Dataset {
    /// Where they come from, for messages.
    pub path: PathBuf,
    pub content: Content,
    pub labels: Labels,
    /// What the classes are called; empty where they are numbers.
    pub class_names: Vec<String>,
}

/// The examples.
#[derive(Debug)]
pub(crate) enum Content {
    Images(Arc<Images>),
    Texts(Vec<Box<str>>),
}

impl Dataset {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// A copy that holds these examples alone, under the same numbers. It has all labels, which are small.
    pub fn only(&self, examples: &BTreeSet<u32>) -> Self {
        let content = match &self.content {
            Content::Images(images) => Content::Images(images.only(examples).into()),
            Content::Texts(texts) => {
                let kept = texts.iter().zip(0..).map(|(text, number)| match examples.contains(&number) {
                    true => text.clone(),
                    false => Box::default(),
                });
                Content::Texts(kept.collect())
            }
        };
        let Self { path, labels, class_names, .. } = self;
        Self { path: path.clone(), content, labels: labels.clone(), class_names: class_names.clone() }
    }
}
