//! Texts one by one: text files, lines of a CSV table, JSON objects.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::{MAX_BYTES, MAX_TEXT};
use crate::dataset::Content;
use crate::error::DataError;
use crate::spec::{Columns, LabelSource};

/// A labelled text as it is written.
#[derive(Debug, PartialEq)]
pub(super) struct Record {
    /// Counted from 1.
    pub line: u64,
    pub text: Box<str>,
    pub label: RawLabel,
}

/// What it is labelled with: names or numbers as text, or targets.
#[derive(Debug, PartialEq)]
pub(super) enum RawLabel {
    Names(Vec<String>),
    Targets(Vec<f32>),
    None,
}

/// Reads whole files. UTF-8, or Latin-1 where the bytes are not UTF-8.
pub(super) fn text_files(files: &[PathBuf]) -> Result<Content, DataError> {
    let mut total = 0;
    let text = |path: &PathBuf| {
        let failed = |source| DataError::Read { path: path.clone(), source };
        let wrong = |reason: String| DataError::Content { path: path.clone(), reason };
        let len = fs::metadata(path).map_err(failed)?.len();
        total += len;
        if len > MAX_TEXT || total > MAX_BYTES {
            return Err(wrong(format!(
                "{len} bytes are too many: texts may have {MAX_TEXT}, all together {MAX_BYTES}"
            )));
        }
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_TEXT).read_to_end(&mut bytes)).map_err(failed)?;
        // Every byte is a character of Latin-1, with the number of that character.
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|error| error.as_bytes().iter().copied().map(char::from).collect());
        if text.trim().is_empty() {
            return Err(wrong("holds no text".to_owned()));
        }
        Ok(text.into_boxed_str())
    };
    Ok(Content::Texts(files.iter().map(text).collect::<Result<_, _>>()?))
}

/// Reads a table whose first line names its columns.
pub(super) fn csv(path: &Path, columns: &Columns, delimiter: char) -> Result<Vec<Record>, DataError> {
    let file = open(path)?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter as u8).from_reader(file);
    let failed = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        let reason = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("has {len} columns, the first line {expected_len}")
            }
            csv::ErrorKind::Utf8 { .. } => "is not UTF-8".to_owned(),
            _ => error.to_string().replace('\n', " "),
        };
        DataError::Row { path: path.to_owned(), line, reason }
    };
    let header = reader.headers().map_err(failed)?.clone();
    let place = |name: &str| {
        header.iter().position(|column| column.trim() == name).ok_or_else(|| DataError::Row {
            path: path.to_owned(),
            line: 1,
            reason: format!(
                "names no column {name:?}: it names {}",
                header.iter().collect::<Vec<_>>().join(", ")
            ),
        })
    };
    let text = place(&columns.text)?;
    let labels: Vec<usize> =
        names(&columns.labels).iter().map(|name| place(name)).collect::<Result<_, _>>()?;
    let mut records = Vec::new();
    let mut row = StringRecord::new();
    while reader.read_record(&mut row).map_err(failed)? {
        let line = row.position().map_or(0, csv::Position::line);
        let wrong = |reason: String| DataError::Row { path: path.to_owned(), line, reason };
        let cell = |column: usize| row.get(column).unwrap_or_default();
        let label = match &columns.labels {
            LabelSource::Class { .. } => RawLabel::Names(vec![cell(labels[0]).trim().to_owned()]),
            LabelSource::MultiLabel { separator, .. } => {
                RawLabel::Names(separated(cell(labels[0]), separator))
            }
            LabelSource::Regression { columns } => {
                let target = |(name, place): (&String, &usize)| {
                    let found = cell(*place).trim();
                    number(found.parse().ok())
                        .ok_or_else(|| wrong(format!("{name} is {found:?}, no finite number")))
                };
                RawLabel::Targets(columns.iter().zip(&labels).map(target).collect::<Result<_, _>>()?)
            }
            LabelSource::Tokens => RawLabel::None,
        };
        records.push(Record { line, text: checked(cell(text)).map_err(wrong)?, label });
    }
    Ok(records)
}

/// Reads one JSON object a line; empty lines are passed over.
pub(super) fn jsonl(path: &Path, columns: &Columns) -> Result<Vec<Record>, DataError> {
    let mut file = open(path)?;
    let mut records = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        let wrong = |reason: String| DataError::Row { path: path.to_owned(), line, reason };
        bytes.clear();
        // Escapes make a text at most six times as long; the other fields may be as long again.
        let limit = 12 * MAX_TEXT;
        let read = file.by_ref().take(limit).read_until(b'\n', &mut bytes);
        match read.map_err(|source| DataError::Read { path: path.to_owned(), source })? {
            0 => break,
            len if len as u64 == limit => return Err(wrong(format!("is longer than {limit} bytes"))),
            _ if bytes.trim_ascii().is_empty() => continue,
            _ => {}
        }
        let object: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("is no JSON object: {error}")))?;
        let field = |name: &str| object.get(name).ok_or_else(|| wrong(format!("has no field {name:?}")));
        let text = field(&columns.text)?;
        let text = text.as_str().ok_or_else(|| wrong(format!("{} is {text}, no text", columns.text)))?;
        let label = match &columns.labels {
            LabelSource::Class { column } => RawLabel::Names(vec![name(field(column)?).map_err(wrong)?]),
            LabelSource::MultiLabel { column, separator } => RawLabel::Names(match field(column)? {
                Value::Array(values) => values.iter().map(name).collect::<Result<_, _>>().map_err(wrong)?,
                Value::String(text) => separated(text, separator),
                value => vec![name(value).map_err(wrong)?],
            }),
            LabelSource::Regression { columns } => {
                let mut targets = Vec::new();
                for column in columns {
                    let value = field(column)?;
                    targets.push(
                        number(value.as_f64().map(|value| value as f32))
                            .ok_or_else(|| wrong(format!("{column} is {value}, no finite number")))?,
                    );
                }
                RawLabel::Targets(targets)
            }
            LabelSource::Tokens => RawLabel::None,
        };
        records.push(Record { line, text: checked(text).map_err(wrong)?, label });
    }
    Ok(records)
}

fn open(path: &Path) -> Result<BufReader<File>, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    if len > MAX_BYTES {
        let reason = format!("{len} bytes are too many: {MAX_BYTES} are the most");
        return Err(DataError::Content { path: path.to_owned(), reason });
    }
    Ok(BufReader::new(file))
}

/// The columns that labels are read from.
fn names(labels: &LabelSource) -> &[String] {
    match labels {
        LabelSource::Class { column } | LabelSource::MultiLabel { column, .. } => {
            std::slice::from_ref(column)
        }
        LabelSource::Regression { columns } => columns,
        LabelSource::Tokens => &[],
    }
}

fn checked(text: &str) -> Result<Box<str>, String> {
    if text.trim().is_empty() {
        return Err("has no text".to_owned());
    }
    if text.len() as u64 > MAX_TEXT {
        return Err(format!("has a text of {} bytes: {MAX_TEXT} are the most", text.len()));
    }
    Ok(text.into())
}

fn separated(text: &str, separator: &str) -> Vec<String> {
    text.split(separator).map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect()
}

fn name(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.trim().to_owned()),
        Value::Number(number) if number.is_i64() => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        other => Err(format!("label {other} is neither a name nor a whole number")),
    }
}

fn number(value: Option<f32>) -> Option<f32> {
    value.filter(|value| value.is_finite())
}
