//! Which of PyTorch's tensors is which of ours. Exporters rename, transpose and reshape, so that tensors of the
//! backbone are recognised by their values; new tensors are named after the layer whose weight they tune.

use std::collections::BTreeMap;

use fedpeft_interp::Value;
use fedpeft_passes::Prepared;
use ndarray::ArrayD;

use crate::case::Case;

/// How a tensor lies in memory, compared with PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Same,
    Transposed,
}

impl Order {
    pub fn of(self, values: &ArrayD<f64>, shape: &[usize]) -> ArrayD<f64> {
        let values = match self {
            Self::Same => values.clone(),
            Self::Transposed => values.t().as_standard_layout().into_owned(),
        };
        values.into_shape_with_order(shape).unwrap()
    }
}

/// Our parameters of the backbone: the names that PyTorch has for them.
pub struct Names {
    parameters: BTreeMap<String, (String, Order)>,
}

impl Names {
    /// `full` holds every parameter of the model.
    pub fn new(backbone: &Prepared, full: &Case) -> Self {
        let find = |name: &String| {
            let tensor = Value::from_tensor(&backbone.graph.initializers[name]).unwrap();
            let values = tensor.as_float().unwrap();
            for (theirs, trained) in &full.trained {
                for order in [Order::Same, Order::Transposed] {
                    if trained.initial.len() == values.len()
                        && order.of(&trained.initial, values.shape()) == *values
                    {
                        return Some((name.clone(), (theirs.clone(), order)));
                    }
                }
            }
            None
        };
        Self { parameters: backbone.parameters.iter().filter_map(find).collect() }
    }

    /// PyTorch's name for a trained tensor of ours, and its order.
    pub fn theirs(&self, ours: &str) -> (String, Order) {
        if let Some((theirs, order)) = self.parameters.get(ours) {
            return (theirs.clone(), *order);
        }
        // `a.query.weight` is tuned by `a.query.lora_A.weight`.
        let tuned = self.parameters.iter().find_map(|(weight, (theirs, _))| {
            // The dynamo exporter's `val_13` is a weight, too.
            let rest = ours.strip_prefix(weight.strip_suffix(".weight").unwrap_or(weight))?;
            rest.starts_with('.').then(|| format!("{}{rest}", theirs.strip_suffix(".weight").unwrap()))
        });
        (tuned.unwrap_or_else(|| ours.to_owned()), Order::Same)
    }
}
