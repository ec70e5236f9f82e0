//! Labels of the hosted clients: `site=eu`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::Error};

/// Labels of one client.
const MOST: usize = 32;
/// Characters of a name or a value.
const LONGEST: usize = 64;

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Table(BTreeMap<String, String>),
    List(Vec<String>),
}

/// From a table, or a list of `name=value`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let pairs: Vec<(String, String)> = match Written::deserialize(deserializer)? {
        Written::Table(table) => table.into_iter().collect(),
        Written::List(list) => {
            list.iter().map(|text| split(text)).collect::<Result<_, _>>().map_err(D::Error::custom)?
        }
    };
    if pairs.len() > MOST {
        return Err(D::Error::custom(format!("there are {} labels, {MOST} are allowed", pairs.len())));
    }
    let mut labels = BTreeMap::new();
    for (name, value) in pairs {
        let word =
            |text: &str| text.len() <= LONGEST && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        if name.is_empty() || !word(&name) || !word(&value) {
            return Err(D::Error::custom(format!(
                "label {name}={value} is not NAME=VALUE: words of at most {LONGEST} bytes, without spaces"
            )));
        }
        if labels.insert(name.clone(), value).is_some() {
            return Err(D::Error::custom(format!("label {name} is given twice")));
        }
    }
    Ok(labels)
}

fn split(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(format!("label {text:?} is not NAME=VALUE, as in site=eu")),
    }
}
