//! Linear layers by name.

use globset::Glob;

use super::{Linear, Projection, Structure};

/// A linear layer, or the part of a packed one, that a method can tune.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What it is: `blocks.0.attention.query`.
    pub path: String,
    /// Index of the linear layer in [`Structure::linears`].
    pub linear: usize,
    /// Its columns that are meant; none for all.
    pub columns: Option<Vec<usize>>,
}

/// Globs that do not choose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is no glob.
    #[error("target {glob:?} is no glob: {reason}")]
    Glob {
        /// The glob.
        glob: String,
        /// Why.
        reason: String,
    },
    /// It matches nothing.
    #[error(
        "target {glob:?} matches no linear layer of this model{hint}; `fedpeft artifacts inspect --targets MODEL` lists \
         them"
    )]
    NoMatch {
        /// The glob.
        glob: String,
        /// Near misses.
        hint: String,
    },
    /// Two globs mean a packed layer and a part of it.
    #[error("targets mean both {whole} and its part {part}: keep one of them")]
    Overlap {
        /// The packed layer.
        whole: String,
        /// Its part.
        part: String,
    },
}

impl Structure {
    /// Everything that low-rank updates and scales can be put on: linear layers, and query, key and value of
    /// packed projections.
    pub fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for (index, linear) in self.linears.iter().enumerate() {
            targets.push(Target { path: linear.path.clone(), linear: index, columns: None });
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let attention = &block.attention;
            let parts = [("query", &attention.query), ("key", &attention.key), ("value", &attention.value)];
            for (role, Projection { linear, columns }) in parts {
                if let Some(columns) = columns {
                    let path = format!("blocks.{i}.attention.{role}");
                    targets.push(Target { path, linear: *linear, columns: Some(columns.clone()) });
                }
            }
        }
        targets
    }

    /// Targets that a glob matches: by path, by the last part of the path, or by the name of the weight with
    /// or without its last part. A glob that means nothing else matches a layer's whole weight, not a part.
    ///
    /// # Errors
    /// [`TargetError`] for the first glob that matches nothing, with near misses.
    pub fn choose(&self, globs: &[String]) -> Result<Vec<Target>, TargetError> {
        let all = self.targets();
        let mut chosen: Vec<Target> = Vec::new();
        for glob in globs {
            let matcher = Glob::new(glob)
                .map_err(|error| TargetError::Glob { glob: glob.clone(), reason: error.kind().to_string() })?
                .compile_matcher();
            let matches = |target: &&Target| {
                let names = self.names(target);
                names.iter().any(|name| matcher.is_match(name))
            };
            let matched: Vec<&Target> = all.iter().filter(matches).collect();
            if matched.is_empty() {
                return Err(self.no_match(glob, &all));
            }
            for target in matched {
                if !chosen.contains(target) {
                    chosen.push(target.clone());
                }
            }
        }
        for part in chosen.iter().filter(|target| target.columns.is_some()) {
            if chosen.iter().any(|whole| whole.linear == part.linear && whole.columns.is_none()) {
                let whole = self.linears[part.linear].path.clone();
                return Err(TargetError::Overlap { whole, part: part.path.clone() });
            }
        }
        Ok(chosen)
    }

    /// Names under which globs find a target.
    fn names<'a>(&'a self, target: &'a Target) -> Vec<&'a str> {
        let last = target.path.rsplit_once('.').map_or(&target.path[..], |(_, last)| last);
        let mut names = vec![target.path.as_str()];
        // "linear.3" is no role.
        names.extend(Some(last).filter(|last| last.parse::<u32>().is_err()));
        if target.columns.is_none() {
            let Linear { weight, .. } = &self.linears[target.linear];
            names.extend([weight.as_str(), module(weight)]);
            names.extend(module(weight).rsplit_once('.').map(|(_, last)| last));
        }
        names
    }

    fn no_match(&self, glob: &str, all: &[Target]) -> TargetError {
        let literal = glob.replace(['*', '?', '[', ']', '{', '}'], "");
        let names = all.iter().flat_map(|target| self.names(target));
        let near = fedpeft_onnx::surgery::near_misses(&literal, names);
        let hint =
            if near.is_empty() { String::new() } else { format!("; near misses: {}", near.join(", ")) };
        TargetError::NoMatch { glob: glob.to_owned(), hint }
    }
}

/// The module whose weight this is: without `.weight`.
pub(crate) fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}
