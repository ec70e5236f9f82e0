//! One folder per class.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Test;
use crate::dataset::{Content, Dataset};
use crate::error::DataError;
use crate::labels::Labels;
use crate::names::Names;
use crate::spec::{DataSpec, Split};

/// Most files of one source.
const MAX_FILES: usize = 1 << 24;

/// A class folder and its files, sorted by name.
struct ClassFolder {
    name: String,
    files: Vec<PathBuf>,
}

/// Reads the split's folders; `read` reads the files of all classes.
pub(super) fn read(
    split: &Split,
    spec: &DataSpec,
    read: impl Fn(&[PathBuf]) -> Result<Content, DataError>,
) -> Result<(Dataset, Test), DataError> {
    let folders = class_folders(&split.train)?;
    let found: BTreeSet<&str> = folders.iter().map(|folder| folder.name.as_str()).collect();
    // Folders called 0, 1, 2 are numbers, like labels in a table.
    let names = Names::settle(&spec.class_names, &found, spec.classes, &split.train)?;
    let dataset = |path: &Path, folders: Vec<ClassFolder>| {
        let (mut files, mut values) = (Vec::new(), Vec::new());
        for folder in folders {
            let number = names.number(&folder.name);
            let number = number.map_err(|reason| content(path, reason.replacen("label", "folder", 1)))?;
            values.resize(values.len() + folder.files.len(), number);
            files.extend(folder.files);
        }
        if files.len() > MAX_FILES {
            return Err(content(path, format!("holds {} files: {MAX_FILES} are the most", files.len())));
        }
        Ok(Dataset {
            path: path.to_owned(),
            content: read(&files)?,
            labels: Labels::Classes { classes: spec.classes, values },
            class_names: names.clone().into_names(),
        })
    };
    let train = dataset(&split.train, folders)?;
    let test = Test::read(split, |path| dataset(path, class_folders(path)?))?;
    Ok((train, test))
}

fn content(path: &Path, reason: String) -> DataError {
    DataError::Content { path: path.to_owned(), reason }
}

/// The class folders of `path` by name. What begins with a dot is not looked at.
fn class_folders(path: &Path) -> Result<Vec<ClassFolder>, DataError> {
    let mut folders = Vec::new();
    for folder in entries(path)? {
        if !folder.is_dir() {
            return Err(content(
                &folder,
                format!("is no folder: {} must hold one per class", path.display()),
            ));
        }
        let name = folder.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| content(&folder, "its name is not UTF-8".to_owned()))?.to_owned();
        let files = entries(&folder)?;
        if let Some(inner) = files.iter().find(|file| file.is_dir()) {
            return Err(content(
                inner,
                "is a folder: examples lie directly in the folder of their class".to_owned(),
            ));
        }
        if files.is_empty() {
            return Err(content(&folder, "holds no example".to_owned()));
        }
        folders.push(ClassFolder { name, files });
    }
    if folders.is_empty() {
        return Err(content(path, "holds no folder: one per class is needed".to_owned()));
    }
    Ok(folders)
}

/// What a folder holds, sorted, so that the order of a dataset does not depend on the file system.
fn entries(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let mut paths = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.retain(|path| !hidden(path));
    paths.sort_unstable();
    Ok(paths)
}
