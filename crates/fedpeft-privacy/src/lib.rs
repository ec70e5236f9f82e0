//! Differential privacy by the Gaussian mechanism on samples: what rounds of clipped and noised updates cost, how much
//! noise a budget asks for, and that noise ([`noise`]), with a clipping norm that follows the updates ([`adaptive`]).
//!
//! A [`Mechanism`] is one release: a sample of clients (or examples), the sum of their clipped contributions, and
//! Gaussian noise of standard deviation `noise multiplier x clipping norm` on it. [`epsilon`] says what a number of
//! releases costs at a `delta`, [`noise_multiplier`] how much noise keeps them within a budget. Both take an
//! [`Accountant`]:
//!
//! | accountant | from | what it gives |
//! | --- | --- | --- |
//! | [`rdp`] | Mironov 2017 (arXiv 1702.07476); Mironov, Talwar and Zhang 2019 (arXiv 1908.10530) | an upper bound, quickly |
//! | [`prv`] | Gopi, Lee and Wutschitz 2021 (arXiv 2106.02848) | an upper bound within a stated error of the exact value; for samples of a fixed size about half of what RDP says |
//!
//! Neighbouring data sets differ by one client (or example) that is there or not, for [`Sampling::Poisson`], and by one
//! that is replaced by another, for [`Sampling::FixedSize`]. These are different promises: an epsilon of the one is
//! not comparable with an epsilon of the other.

pub mod adaptive;
mod budget;
mod mechanism;
pub mod noise;
pub mod prv;
pub mod rdp;
mod special;

pub use adaptive::{AdaptiveClip, AdaptiveError};
pub use budget::{Accountant, delta, epsilon, noise_multiplier};
pub use mechanism::{Mechanism, PrivacyError, Sampling};
pub use noise::{NoiseError, NoiseSecret, NoiseStream, Scale};
