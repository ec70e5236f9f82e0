//! Which tensors of an adapter are shared, and which never leave their client.

use globset::Glob;

use crate::Layout;

/// An adapter's tensors, divided into shared and local ones. What is shared is what crosses the wire, in the order of
/// the whole adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    whole: Layout,
    shared: Layout,
    local: Option<Layout>,
    /// Whether each tensor of the whole is local.
    is_local: Vec<bool>,
}

/// Globs that divide no adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidScope {
    /// It is no glob.
    #[error("training.local: {0}")]
    Glob(String),
    /// It names nothing.
    #[error("training.local: no adapter tensor matches {glob:?}: there are {tensors}")]
    Nothing {
        /// The glob.
        glob: String,
        /// The adapter's tensors, the first of them.
        tensors: String,
    },
    /// All tensors are local.
    #[error("training.local matches every adapter tensor, so that nothing would be shared: leave one out")]
    Everything,
}

/// Tensors that an error names.
const NAMED: usize = 12;

impl Scope {
    /// The tensors of `layout` of which those that match one of `globs` are local.
    pub fn new(layout: &Layout, globs: &[String]) -> Result<Self, InvalidScope> {
        let mut is_local = vec![false; layout.tensors().len()];
        for glob in globs {
            let compiled = Glob::new(glob).map_err(|error| InvalidScope::Glob(error.to_string()))?;
            let matcher = compiled.compile_matcher();
            let mut found = false;
            for (is_local, spec) in is_local.iter_mut().zip(layout.tensors()) {
                if matcher.is_match(&spec.name) {
                    (*is_local, found) = (true, true);
                }
            }
            if !found {
                return Err(InvalidScope::Nothing { glob: glob.clone(), tensors: names(layout) });
            }
        }
        let part = |wanted: bool| {
            let specs = layout.tensors().iter().zip(&is_local).filter(|(_, is_local)| **is_local == wanted);
            // A part of a layout is one, unless it is empty.
            Layout::new(specs.map(|(spec, _)| spec.clone()).collect()).ok()
        };
        let shared = part(false).ok_or(InvalidScope::Everything)?;
        Ok(Self { whole: layout.clone(), shared, local: part(true), is_local })
    }

    /// All tensors.
    pub fn whole(&self) -> &Layout {
        &self.whole
    }

    /// Tensors that cross the wire.
    pub fn shared(&self) -> &Layout {
        &self.shared
    }

    /// Tensors that do not, if any.
    pub fn local(&self) -> Option<&Layout> {
        self.local.as_ref()
    }

    /// The shared and the local values of a whole adapter.
    pub fn split(&self, values: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (mut shared, mut local) = (Vec::with_capacity(self.shared.values()), Vec::new());
        for (is_local, (_, range)) in self.is_local.iter().zip(self.whole.ranges()) {
            let part = values.get(range).unwrap_or_default();
            if *is_local { &mut local } else { &mut shared }.extend_from_slice(part);
        }
        (shared, local)
    }

    /// The whole adapter of these shared and local values.
    pub fn join(&self, shared: &[f32], local: &[f32]) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.whole.values());
        let (mut shared, mut local) = (shared.iter(), local.iter());
        for (is_local, (_, range)) in self.is_local.iter().zip(self.whole.ranges()) {
            let part = if *is_local { &mut local } else { &mut shared };
            values.extend(part.by_ref().take(range.len()));
        }
        values
    }
}

/// The names of the first tensors.
fn names(layout: &Layout) -> String {
    let names = layout.tensors().iter().take(NAMED).map(|spec| spec.name.as_str());
    let mut text = names.collect::<Vec<_>>().join(", ");
    if layout.tensors().len() > NAMED {
        text += ", ...";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorSpec;
    use proptest::prelude::*;

    fn layout() -> Layout {
        let spec = |name: &str, values| TensorSpec { name: name.into(), shape: vec![values] };
        let specs = [("blocks.0.norm.bias", 2), ("head.weight", 3), ("blocks.1.bias", 1), ("head.bias", 2)];
        Layout::new(specs.map(|(name, values)| spec(name, values)).to_vec()).unwrap()
    }

    fn scope(globs: &[&str]) -> Result<Scope, InvalidScope> {
        Scope::new(&layout(), &globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn globs_divide_the_adapter() {
        let names = |layout: &Layout| layout.tensors().iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        let head = scope(&["head.*"]).unwrap();
        assert_eq!(names(head.shared()), ["blocks.0.norm.bias", "blocks.1.bias"]);
        assert_eq!(names(head.local().unwrap()), ["head.weight", "head.bias"]);
        let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let (shared, local) = head.split(&values);
        assert_eq!(
            (shared.as_slice(), local.as_slice()),
            (&[0.0, 1.0, 5.0][..], &[2.0, 3.0, 4.0, 6.0, 7.0][..])
        );
        assert_eq!(
            names(scope(&["*norm*", "head.bias"]).unwrap().shared()),
            ["head.weight", "blocks.1.bias"]
        );
        let none = scope(&[]).unwrap();
        assert_eq!((none.shared(), none.local()), (&layout(), None));
    }

    #[test]
    fn globs_that_divide_nothing_are_named() {
        let error = |globs: &[&str]| scope(globs).unwrap_err();
        assert!(
            matches!(error(&["head.*", "haed.*"]), InvalidScope::Nothing { glob, .. } if glob == "haed.*")
        );
        assert_eq!(error(&["*"]), InvalidScope::Everything);
        let text = error(&["a[b"]).to_string();
        assert!(text.contains("a[b") && !text.contains('\n'), "{text}");
    }

    proptest! {
        #[test]
        fn what_is_split_is_joined(mask in 1u8..15, values in proptest::collection::vec(-1e3f32..1e3, 8)) {
            let layout = layout();
            let globs: Vec<String> = layout.tensors().iter().enumerate()
                .filter(|(at, _)| mask >> at & 1 == 1).map(|(_, spec)| spec.name.clone()).collect();
            let scope = Scope::new(&layout, &globs).unwrap();
            let (shared, local) = scope.split(&values);
            prop_assert_eq!(shared.len(), scope.shared().values());
            prop_assert_eq!(local.len(), scope.local().unwrap().values());
            prop_assert_eq!(scope.join(&shared, &local), values);
        }
    }
}
