//! What training reads.

/// Examples of one client. Implementations write straight into the tensors that the graph reads, so that
/// no batch is copied twice.
pub trait Examples {
    /// Number of examples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the examples at `indices`, each below [`Self::len`], one after the other: their values to
    /// `inputs`, their classes to `labels`.
    ///
    /// # Errors
    /// One line saying what could not be read.
    fn fill(&self, indices: &[usize], inputs: &mut [f32], labels: &mut [i64]) -> Result<(), String>;
}

/// Examples in memory: rows of values, and a label each.
#[derive(Debug, Clone)]
pub struct InMemory {
    inputs: Vec<f32>,
    labels: Vec<i64>,
}

impl InMemory {
    /// `inputs` holds one row of equal length per label.
    pub fn new(inputs: Vec<f32>, labels: Vec<i64>) -> Option<Self> {
        let whole = !labels.is_empty() && inputs.len().is_multiple_of(labels.len());
        whole.then_some(Self { inputs, labels })
    }
}

impl Examples for InMemory {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn fill(&self, indices: &[usize], inputs: &mut [f32], labels: &mut [i64]) -> Result<(), String> {
        let width = self.inputs.len() / self.labels.len();
        if inputs.len() != indices.len() * width {
            return Err(format!(
                "examples have {width} values, the model reads {}",
                inputs.len() / indices.len().max(1)
            ));
        }
        for ((index, row), label) in indices.iter().zip(inputs.chunks_exact_mut(width)).zip(labels) {
            let source = self.inputs.get(index * width..(index + 1) * width);
            row.copy_from_slice(source.ok_or_else(|| format!("there is no example {index}"))?);
            *label = self.labels[*index];
        }
        Ok(())
    }
}
