//! What classes are called, and which number each has.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::error::DataError;

/// Most classes with names or numbers in a table or as folders.
pub(crate) const MAX_CLASSES: u32 = 1 << 16;

/// The classes of a dataset.
#[derive(Debug, Clone)]
pub(crate) enum Names {
    /// Labels are numbers in `0..classes`.
    Numbers(u32),
    /// Labels are names; each has the number of its place.
    Named { names: Vec<String>, numbers: HashMap<String, u32> },
}

impl Names {
    /// `listed` where there are any; otherwise numbers, if all labels that were `found` are; otherwise the
    /// names found, sorted.
    pub fn settle(
        listed: &[String],
        found: &BTreeSet<&str>,
        classes: u32,
        path: &Path,
    ) -> Result<Self, DataError> {
        if !(1..=MAX_CLASSES).contains(&classes) {
            return Err(DataError::Classes { classes, most: MAX_CLASSES });
        }
        if !listed.is_empty() {
            return Self::named(listed.to_vec(), classes);
        }
        if found.iter().all(|label| label.parse::<i64>().is_ok()) {
            return Ok(Self::Numbers(classes));
        }
        if found.len() != classes as usize {
            return Err(DataError::ClassCount { path: path.to_owned(), found: found.len(), classes });
        }
        Self::named(found.iter().map(|name| (*name).to_owned()).collect(), classes)
    }

    fn named(names: Vec<String>, classes: u32) -> Result<Self, DataError> {
        let wrong = |reason: String| Err(DataError::ClassNames { reason });
        if names.len() != classes as usize {
            return wrong(format!("lists {} names, but classes = {classes}", names.len()));
        }
        let mut numbers = HashMap::new();
        for (number, name) in (0..).zip(&names) {
            if numbers.insert(name.clone(), number).is_some() {
                return wrong(format!("lists {name:?} twice"));
            }
        }
        Ok(Self::Named { names, numbers })
    }

    /// The number of a label, or one line that says why it has none.
    pub fn number(&self, label: &str) -> Result<u32, String> {
        match self {
            Self::Numbers(classes) => label
                .parse()
                .ok()
                .filter(|number| number < classes)
                .ok_or_else(|| format!("label {label:?} is not among the {classes} classes 0..{classes}")),
            Self::Named { names, numbers } => numbers.get(label).copied().ok_or_else(|| {
                let shown: Vec<&str> = names.iter().map(String::as_str).take(8).collect();
                let more = if names.len() > shown.len() { ", ..." } else { "" };
                format!("label {label:?} is none of the {} classes {}{more}", names.len(), shown.join(", "))
            }),
        }
    }

    /// The names in order; empty where classes are numbers.
    pub fn into_names(self) -> Vec<String> {
        match self {
            Self::Numbers(_) => Vec::new(),
            Self::Named { names, .. } => names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(listed: &[&str], found: &[&str], classes: u32) -> Result<Names, DataError> {
        let listed: Vec<String> = listed.iter().map(|name| (*name).to_owned()).collect();
        Names::settle(&listed, &found.iter().copied().collect(), classes, Path::new("t.csv"))
    }

    #[test]
    fn numbers_stay_numbers_and_names_are_sorted() {
        let numbers = settle(&[], &["2", "0"], 3).unwrap();
        assert_eq!(numbers.number("1"), Ok(1));
        assert!(numbers.number("3").unwrap_err().contains("0..3"));
        assert!(numbers.number("-1").is_err());
        let names = settle(&[], &["sport", "arts"], 2).unwrap();
        assert_eq!((names.number("arts"), names.number("sport")), (Ok(0), Ok(1)));
        assert!(names.number("tech").unwrap_err().contains("arts, sport"));
        let listed = settle(&["1", "0"], &["1", "0"], 2).unwrap();
        assert_eq!(listed.number("1"), Ok(0));
    }

    #[test]
    fn a_class_more_or_less_is_named() {
        assert!(matches!(
            settle(&[], &["a", "b"], 3),
            Err(DataError::ClassCount { found: 2, classes: 3, .. })
        ));
        assert!(matches!(settle(&["a"], &["a"], 2), Err(DataError::ClassNames { .. })));
        assert!(matches!(settle(&["a", "a"], &["a"], 2), Err(DataError::ClassNames { .. })));
        assert!(matches!(settle(&[], &[], 0), Err(DataError::Classes { classes: 0, .. })));
    }
}
