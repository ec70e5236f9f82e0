//! Labelled examples in memory.

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
}
