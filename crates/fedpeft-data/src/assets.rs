//! Where downloaded assets lie.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// The asset cache: `FEDPEFT_ASSETS`, else `$XDG_CACHE_HOME/fedpeft`, else `~/.cache/fedpeft`.
///
/// `None` when the environment names no home at all.
pub fn asset_dir() -> Option<PathBuf> {
    resolve(|name| env::var_os(name))
}

fn resolve(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("FEDPEFT_ASSETS")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("fedpeft")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/fedpeft")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_variable_wins_and_empty_ones_do_not_count() {
        let with = |set: &[(&str, &str)]| {
            let set: Vec<_> = set.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
            resolve(move |name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        let home = ("HOME", "/h");
        let xdg = ("XDG_CACHE_HOME", "/c");
        assert_eq!(with(&[home, xdg, ("FEDPEFT_ASSETS", "/a")]), Some("/a".into()));
        assert_eq!(with(&[home, xdg, ("FEDPEFT_ASSETS", "")]), Some("/c/fedpeft".into()));
        assert_eq!(with(&[home]), Some("/h/.cache/fedpeft".into()));
        assert_eq!(with(&[]), None);
    }
}
