//! One release of a noised sum.

/// How clients (or examples) are drawn for one release. An accountant's promise holds for what is drawn as it says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// Each one independently with probability `rate`. Neighbours: one more, or one fewer.
    Poisson {
        /// 0 to 1; at 1 all take part.
        rate: f64,
    },
    /// A fixed share of all, uniformly and without replacement. Neighbours: one replaced by another.
    FixedSize {
        /// Size of the sample over the size of the whole, 0 to 1.
        rate: f64,
    },
}

impl Sampling {
    /// Share of all that a sample has, or has in the mean.
    pub fn rate(self) -> f64 {
        match self {
            Self::Poisson { rate } | Self::FixedSize { rate } => rate,
        }
    }
}

/// The Gaussian mechanism on a sample: the sum of contributions of norm at most `c`, and noise of standard deviation
/// `noise_multiplier x c` on every value of it.
///
/// The multiplier is relative to the clipping norm `c` whatever the sampling. Replacing one contribution moves the sum
/// by up to `2 c`, twice what leaving one out does, and the accountants take that into account.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mechanism {
    sampling: Sampling,
    noise_multiplier: f64,
}

/// Numbers that no accountant can do anything with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PrivacyError {
    /// The sampling rate.
    #[error("the sampling rate is {0}: it is above 0 and at most 1")]
    Rate(f64),
    /// The noise.
    #[error("the noise multiplier is {0}: it is above 0, and useful from about 0.3 on")]
    NoiseMultiplier(f64),
    /// The delta.
    #[error("delta is {0}: it is between 0 and 1, and should be well below one over the number of clients")]
    Delta(f64),
    /// The epsilon.
    #[error("epsilon is {0}: it is above 0")]
    Epsilon(f64),
    /// Releases whose promises differ.
    #[error(
        "releases of Poisson samples and of samples of a fixed size promise different things: account for each apart"
    )]
    Neighbours,
    /// Nothing could keep to the budget.
    #[error(
        "no noise multiplier up to {0} keeps {1} rounds within epsilon {2}: take fewer rounds, or a larger budget"
    )]
    Budget(f64, u64, f64),
}

impl Mechanism {
    /// Checks both numbers.
    pub fn new(sampling: Sampling, noise_multiplier: f64) -> Result<Self, PrivacyError> {
        let rate = sampling.rate();
        if !(rate > 0.0 && rate <= 1.0) {
            return Err(PrivacyError::Rate(rate));
        }
        if !(noise_multiplier > 0.0 && noise_multiplier.is_finite()) {
            return Err(PrivacyError::NoiseMultiplier(noise_multiplier));
        }
        Ok(Self { sampling, noise_multiplier })
    }

    /// How a sample is drawn.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Standard deviation of the noise over the clipping norm.
    pub fn noise_multiplier(&self) -> f64 {
        self.noise_multiplier
    }

    /// Standard deviation of the noise over the most that one neighbour moves the sum.
    pub(crate) fn sigma(&self) -> f64 {
        match self.sampling {
            Sampling::Poisson { .. } => self.noise_multiplier,
            Sampling::FixedSize { .. } => self.noise_multiplier / 2.0,
        }
    }
}
