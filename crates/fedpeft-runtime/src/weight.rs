//! What the loss of a batch is a mean over. Means over several batches weigh each by it, so that they are the
//! mean over all of them at once.

use fedpeft_artifacts::manifest::TaskSpec;

use crate::Values;

/// How batches of a task are weighed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Weighing {
    /// By their examples.
    Examples,
    /// By their scored tokens.
    Decisions,
    /// By the weights of their examples' classes.
    Classes(Vec<f32>),
}

impl Weighing {
    pub fn of(task: &TaskSpec) -> Self {
        match task {
            TaskSpec::CausalLm { .. } => Self::Decisions,
            TaskSpec::Classification { class_weights, .. } if !class_weights.is_empty() => {
                Self::Classes(class_weights.clone())
            }
            _ => Self::Examples,
        }
    }

    /// Weight of a batch with so many examples, these labels, and so many decisions.
    pub fn weigh(&self, examples: usize, labels: &Values<'_>, decisions: u64) -> f64 {
        match (self, labels) {
            (Self::Classes(weights), Values::I64(labels)) => {
                let weight = |label: &i64| usize::try_from(*label).ok().and_then(|at| weights.get(at));
                labels.iter().filter_map(weight).map(|weight| f64::from(*weight)).sum()
            }
            (Self::Decisions, _) => decisions as f64,
            _ => examples as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_weighs_what_its_loss_is_a_mean_over() {
        let mut classes = [0, 2, 2];
        let weigh =
            |task: &TaskSpec, labels: &mut [i64]| Weighing::of(task).weigh(3, &Values::I64(labels), 7);
        let weighted =
            TaskSpec::Classification { classes: 3, label_smoothing: 0.0, class_weights: vec![0.5, 1.0, 2.0] };
        assert_eq!(weigh(&weighted, &mut classes), 4.5);
        assert_eq!(weigh(&TaskSpec::CausalLm { vocabulary: 3 }, &mut classes), 7.0);
        let plain = TaskSpec::Classification { classes: 3, label_smoothing: 0.1, class_weights: vec![] };
        assert_eq!(weigh(&plain, &mut classes), 3.0);
    }
}
