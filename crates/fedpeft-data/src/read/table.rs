//! Records with labels, from CSV or JSON lines.

use std::collections::BTreeSet;
use std::path::Path;

use super::Test;
use super::records::{RawLabel, Record};
use crate::dataset::{Content, Dataset};
use crate::error::DataError;
use crate::labels::Labels;
use crate::names::Names;
use crate::spec::{Columns, DataSpec, LabelSource, Split};

/// Most examples of one source.
const MAX_RECORDS: usize = 1 << 26;

/// Reads the split's files by `read`. Held-out examples have the classes of the training ones.
pub(super) fn read(
    split: &Split,
    columns: &Columns,
    spec: &DataSpec,
    read: impl Fn(&Path) -> Result<Vec<Record>, DataError>,
) -> Result<(Dataset, Test), DataError> {
    let records = read(&split.train)?;
    let found: BTreeSet<&str> = records
        .iter()
        .flat_map(|record| match &record.label {
            RawLabel::Names(names) => names.as_slice(),
            RawLabel::Targets(_) | RawLabel::None => &[],
        })
        .map(String::as_str)
        .collect();
    let names = match &columns.labels {
        LabelSource::Class { .. } | LabelSource::MultiLabel { .. } => {
            Some(Names::settle(&spec.class_names, &found, spec.classes, &split.train)?)
        }
        LabelSource::Regression { .. } | LabelSource::Tokens => None,
    };
    let dataset = |path: &Path, records: Vec<Record>| {
        if records.is_empty() || records.len() > MAX_RECORDS {
            let reason = format!("holds {} examples: it must be 1 to {MAX_RECORDS}", records.len());
            return Err(DataError::Content { path: path.to_owned(), reason });
        }
        let labels = labels(path, &records, &columns.labels, names.as_ref(), spec.classes)?;
        Ok(Dataset {
            path: path.to_owned(),
            content: Content::Texts(records.into_iter().map(|record| record.text).collect()),
            labels,
            class_names: names.clone().map(Names::into_names).unwrap_or_default(),
        })
    };
    let train = dataset(&split.train, records)?;
    let test = Test::read(split, |path| dataset(path, read(path)?))?;
    Ok((train, test))
}

fn labels(
    path: &Path,
    records: &[Record],
    source: &LabelSource,
    names: Option<&Names>,
    classes: u32,
) -> Result<Labels, DataError> {
    let row = |record: &Record| -> Result<Vec<u32>, DataError> {
        let (RawLabel::Names(given), Some(names)) = (&record.label, names) else { return Ok(Vec::new()) };
        let number = |name: &String| names.number(name);
        given.iter().map(number).collect::<Result<Vec<u32>, String>>().map_err(|reason| DataError::Row {
            path: path.to_owned(),
            line: record.line,
            reason,
        })
    };
    Ok(match source {
        LabelSource::Class { .. } => {
            let rows = records.iter().map(row).collect::<Result<Vec<_>, _>>()?;
            Labels::Classes { classes, values: rows.concat() }
        }
        LabelSource::MultiLabel { .. } => {
            let mut rows = records.iter().map(row).collect::<Result<Vec<_>, _>>()?;
            for row in &mut rows {
                row.sort_unstable();
                row.dedup();
            }
            Labels::MultiLabel { labels: classes, rows }
        }
        LabelSource::Regression { columns } => {
            let targets = |record: &Record| match &record.label {
                RawLabel::Targets(targets) => targets.clone(),
                RawLabel::Names(_) | RawLabel::None => Vec::new(),
            };
            let outputs = columns.len() as u32;
            Labels::Regression { outputs, values: records.iter().flat_map(targets).collect() }
        }
        LabelSource::Tokens => Labels::Tokens { examples: records.len() },
    })
}
