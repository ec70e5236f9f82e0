//! SCAFFOLD (Karimireddy et al., arXiv 1910.06378, algorithm 1 with option II), the client's part. In K steps `k` of
//! learning rates `l_k` it goes from `x` to `y`:
//!
//! ```text
//! y <- y - l_k (g(y) + c - c_i)
//! c_i' = c_i - c + (x - y) / (l_1 + ... + l_K)
//! ```
//!
//! where `c` is the server's control variate and `c_i` its own. It sends `y` and `c_i' - c_i`. With a constant learning rate
//! the divisor is the paper's `K l`.

/// The control variates that a training begins with, of the tensors that are shared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Variates {
    /// The server's, c.
    pub server: Vec<f32>,
    /// The client's own, `c_i`.
    pub own: Vec<f32>,
}

impl Variates {
    /// What is added to every gradient.
    pub fn correction(&self) -> Vec<f32> {
        self.server.iter().zip(&self.own).map(|(server, own)| server - own).collect()
    }

    /// What the client's own changes by in a training from `start` to `end` whose learning rates have this sum.
    pub fn change(&self, start: &[f32], end: &[f32], learning_rates: f64) -> Vec<f32> {
        let ends = start.iter().zip(end).zip(&self.server);
        ends.map(|((start, end), server)| {
            let step = (f64::from(*start) - f64::from(*end)) / learning_rates;
            (step - f64::from(*server)) as f32
        })
        .collect()
    }

    /// The client's own after such a change. It adds what was sent, so that the server's stays the mean of the clients'.
    pub fn after(&self, change: &[f32]) -> Vec<f32> {
        self.own.iter().zip(change).map(|(own, change)| own + change).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: K = 4 steps of 0.1 from 1.0 to 0.8 have a mean gradient of 0.5, corrected by c - c_i.
    #[test]
    fn a_variate_becomes_the_mean_gradient_of_the_training() {
        let variates = Variates { server: vec![0.25, 0.0], own: vec![-0.5, 1.0] };
        assert_eq!(variates.correction(), [0.75, -1.0]);
        let change = variates.change(&[1.0, 0.0], &[0.8, 0.4], 0.4);
        assert!((change[0] - 0.25).abs() < 1e-6 && (change[1] + 1.0).abs() < 1e-6, "{change:?}");
        // c_i' = c_i - c + (x - y)/(K l) = -0.5 - 0.25 + 0.5, and 1 - 0 - 1.
        let after = variates.after(&change);
        assert!((after[0] + 0.25).abs() < 1e-6 && after[1].abs() < 1e-6, "{after:?}");
    }
}
