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

    /// Writes the examples at `indices`, each below [`Self::len`], one after the other into every tensor of
    /// `batch`. All of a tensor's values are to be written: it holds those of an earlier batch.
    ///
    /// # Errors
    /// One line saying what could not be read.
    fn fill(&self, indices: &[usize], batch: &mut Batch<'_>) -> Result<(), String>;
}

/// The tensors of a batch.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The model's inputs, in the manifest's order.
    pub inputs: Vec<Values<'a>>,
    /// The labels, as the manifest's task has them.
    pub labels: Values<'a>,
}

/// The values of a tensor, one example after the other.
#[derive(Debug)]
pub enum Values<'a> {
    /// 32-bit floating point.
    F32(&'a mut [f32]),
    /// 64-bit integers.
    I64(&'a mut [i64]),
}

/// Examples in memory.
#[derive(Debug, Clone)]
pub struct InMemory {
    count: usize,
    inputs: Vec<Column>,
    labels: Column,
}

/// One row of values for each example.
#[derive(Debug, Clone)]
pub enum Column {
    /// 32-bit floating point.
    F32(Vec<f32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

impl From<Vec<f32>> for Column {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(values)
    }
}

impl From<Vec<i64>> for Column {
    fn from(values: Vec<i64>) -> Self {
        Self::I64(values)
    }
}

impl InMemory {
    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        let bytes = |column: &Column| match column {
            Column::F32(values) => size_of_val(&values[..]),
            Column::I64(values) => size_of_val(&values[..]),
        };
        self.inputs.iter().chain([&self.labels]).map(bytes).sum()
    }

    /// Examples of one input with a class each: `inputs` holds one row of equal length per label.
    pub fn new(inputs: Vec<f32>, labels: Vec<i64>) -> Option<Self> {
        Self::with_columns(labels.len(), vec![inputs.into()], labels.into())
    }

    /// `count` examples, whose rows in each column have equal length; none if they have not.
    pub fn with_columns(count: usize, inputs: Vec<Column>, labels: Column) -> Option<Self> {
        let whole = |column: &Column| count > 0 && column.len().is_multiple_of(count);
        (inputs.iter().all(whole) && whole(&labels)).then_some(Self { count, inputs, labels })
    }
}

impl Column {
    /// A copy of these values.
    pub(crate) fn of(values: &Values<'_>) -> Self {
        match values {
            Values::F32(values) => Self::F32(values.to_vec()),
            Values::I64(values) => Self::I64(values.to_vec()),
        }
    }

    /// Appends values of the same type; of another, nothing.
    pub(crate) fn extend(&mut self, more: &Values<'_>) {
        match (self, more) {
            (Self::F32(values), Values::F32(more)) => values.extend_from_slice(more),
            (Self::I64(values), Values::I64(more)) => values.extend_from_slice(more),
            _ => {}
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I64(values) => values.len(),
        }
    }

    /// Copies the rows at `indices` of `count` to `target`.
    fn copy(&self, count: usize, indices: &[usize], target: &mut Values<'_>) -> Result<(), String> {
        match (self, target) {
            (Self::F32(source), Values::F32(target)) => copy_rows(source, count, indices, target),
            (Self::I64(source), Values::I64(target)) => copy_rows(source, count, indices, target),
            (Self::F32(_), Values::I64(_)) => Err("these are f32 values, the model reads i64".into()),
            (Self::I64(_), Values::F32(_)) => Err("these are i64 values, the model reads f32".into()),
        }
    }
}

fn copy_rows<T: Copy>(source: &[T], count: usize, indices: &[usize], target: &mut [T]) -> Result<(), String> {
    let width = source.len() / count;
    if target.len() != indices.len() * width {
        let read = target.len() / indices.len().max(1);
        return Err(format!("examples have {width} values, the model reads {read}"));
    }
    for (position, index) in indices.iter().enumerate() {
        let row = source.get(index * width..(index + 1) * width);
        let row = row.ok_or_else(|| format!("there is no example {index}"))?;
        target[position * width..(position + 1) * width].copy_from_slice(row);
    }
    Ok(())
}

impl Examples for InMemory {
    fn len(&self) -> usize {
        self.count
    }

    fn fill(&self, indices: &[usize], batch: &mut Batch<'_>) -> Result<(), String> {
        if batch.inputs.len() != self.inputs.len() {
            return Err(format!(
                "examples have {} inputs, the model has {}",
                self.inputs.len(),
                batch.inputs.len()
            ));
        }
        for (i, (column, target)) in self.inputs.iter().zip(&mut batch.inputs).enumerate() {
            column
                .copy(self.count, indices, target)
                .map_err(|reason| format!("input {}: {reason}", i + 1))?;
        }
        self.labels.copy(self.count, indices, &mut batch.labels).map_err(|reason| format!("labels: {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_copied_in_the_order_asked_for() {
        let examples = InMemory::with_columns(
            3,
            vec![vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].into(), vec![7i64, 8, 9].into()],
            vec![0.5f32, 0.25, 0.125].into(),
        );
        let examples = examples.unwrap();
        let (mut x, mut ids, mut y) = ([0.0; 4], [0; 2], [0.0; 2]);
        let mut batch =
            Batch { inputs: vec![Values::F32(&mut x), Values::I64(&mut ids)], labels: Values::F32(&mut y) };
        examples.fill(&[2, 0], &mut batch).unwrap();
        assert_eq!((x, ids, y), ([5.0, 6.0, 1.0, 2.0], [9, 7], [0.125, 0.5]));
    }

    #[test]
    fn what_does_not_fit_is_said_in_one_line() {
        assert!(InMemory::new(vec![0.0; 5], vec![0, 1]).is_none());
        assert!(InMemory::new(vec![], vec![]).is_none());
        let examples = InMemory::new(vec![0.0; 4], vec![0, 1]).unwrap();
        let (mut x, mut ids) = ([0.0; 3], [0; 2]);
        let refused = |index: usize, inputs: Vec<Values<'_>>, expected: &str| {
            let error = examples.fill(&[index], &mut Batch { inputs, labels: Values::I64(&mut [0]) });
            let error = error.unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refused(0, vec![], "1 inputs, the model has 0");
        refused(0, vec![Values::F32(&mut x)], "2 values, the model reads 3");
        refused(9, vec![Values::F32(&mut x[..2])], "no example 9");
        refused(0, vec![Values::I64(&mut ids)], "the model reads i64");
    }
}
