//! Shamir's secret sharing (CACM 1979) over the scalar field of Curve25519, whose order is a prime above 2^252.
//!
//! The field and its constant-time arithmetic are those of `curve25519-dalek`; what is here is a polynomial and a sum.
//! Crates of sharing over GF(2^8) end at 255 holders, which a complete graph exceeds, and general ones compute
//! the coefficients of the sum again for each secret: a server recovers hundreds of secrets from the same
//! holders, so [`Combiner`] computes them once.

use curve25519_dalek::Scalar;
use rand::CryptoRng;
use zeroize::{Zeroize, Zeroizing};

use crate::members::Member;

/// The field element at which `holder`'s share is the value of the polynomial; never 0, where the secret is.
fn point(holder: Member) -> Scalar {
    Scalar::from(u64::from(holder) + 1)
}

/// Splits `secret` into a share for each of `holders`, of which any `threshold` (at least 1) give it back and any fewer
/// are independent of it.
pub fn split(
    secret: &Scalar,
    threshold: usize,
    holders: &[Member],
    rng: &mut impl CryptoRng,
) -> Vec<Zeroizing<Scalar>> {
    let mut coefficients: Vec<_> = (1..threshold).map(|_| Scalar::random(rng)).collect();
    let shares = holders
        .iter()
        .map(|holder| {
            let x = point(*holder);
            // Horner's rule, from the highest power to the secret.
            let above = coefficients.iter().fold(Scalar::ZERO, |sum, coefficient| sum * x + coefficient);
            Zeroizing::new(above * x + secret)
        })
        .collect();
    coefficients.zeroize();
    shares
}

/// Recovers secrets from the shares of one set of holders.
pub struct Combiner {
    holders: Vec<Member>,
    coefficients: Vec<Scalar>,
}

impl Combiner {
    /// For distinct `holders`.
    pub fn new(holders: Vec<Member>) -> Self {
        // Lagrange's coefficients at 0: the product of x_j / (x_j - x_i) over all j but i.
        let all: Scalar = holders.iter().map(|holder| point(*holder)).product();
        let mut coefficients: Vec<Scalar> = holders
            .iter()
            .map(|i| {
                let others = holders.iter().filter(|j| *j != i);
                point(*i) * others.map(|j| point(*j) - point(*i)).product::<Scalar>()
            })
            .collect();
        // No factor is zero, for the holders are distinct and no point is.
        Scalar::invert_batch_alloc(&mut coefficients);
        coefficients.iter_mut().for_each(|coefficient| *coefficient *= all);
        Self { holders, coefficients }
    }

    /// Whose shares it takes, in this order.
    pub fn holders(&self) -> &[Member] {
        &self.holders
    }

    /// The secret of which `shares` are the holders' shares, if there are as many as the threshold; else, an
    /// element of the field that says nothing.
    pub fn combine<'a>(&self, shares: impl IntoIterator<Item = &'a Scalar>) -> Zeroizing<Scalar> {
        Zeroizing::new(
            self.coefficients.iter().zip(shares).map(|(coefficient, share)| coefficient * share).sum(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    fn combine(holders: &[Member], shares: &[Zeroizing<Scalar>], chosen: &[usize]) -> Scalar {
        let combiner = Combiner::new(chosen.iter().map(|at| holders[*at]).collect());
        *combiner.combine(chosen.iter().map(|at| &*shares[*at]))
    }

    proptest! {
        #[test]
        fn any_threshold_of_shares_gives_the_secret_and_fewer_do_not(
            seed: u64, holders in prop::collection::btree_set(0u32..10_000, 2..40), part in 0.0..1.0f64,
        ) {
            let mut rng = ChaCha20Rng::seed_from_u64(seed);
            let holders: Vec<_> = holders.into_iter().collect();
            let threshold = 1 + (part * (holders.len() - 1) as f64) as usize;
            let secret = Scalar::random(&mut rng);
            let shares = split(&secret, threshold, &holders, &mut rng);
            let first: Vec<_> = (0..threshold).collect();
            let last: Vec<_> = (holders.len() - threshold..holders.len()).rev().collect();
            let all: Vec<_> = (0..holders.len()).collect();
            for chosen in [&first, &last, &all] {
                prop_assert_eq!(combine(&holders, &shares, chosen), secret);
            }
            if threshold > 1 {
                prop_assert_ne!(combine(&holders, &shares, &first[1..]), secret);
            }
        }
    }

    #[test]
    fn a_polynomial_by_hand() {
        // 5 + 3x + 2x^2 at 1, 2 and 4 is 10, 19 and 49.
        let shares = [10u64, 19, 49].map(Scalar::from);
        assert_eq!(*Combiner::new(vec![0, 1, 3]).combine(&shares), Scalar::from(5u64));
    }

    /// With one share fewer than the threshold, each secret is as likely as any other: for whatever secret one names,
    /// there is exactly one polynomial that gives the shares seen.
    #[test]
    fn fewer_shares_fit_every_secret() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let holders: Vec<Member> = (0..9).collect();
        let shares = split(&Scalar::from(42u64), 5, &holders, &mut rng);
        for other in [Scalar::ZERO, Scalar::ONE, Scalar::random(&mut rng)] {
            // The polynomial through the four shares and the other secret; its value at a fifth holder is a share
            // with which the five give that secret.
            let combiner = Combiner::new(vec![0, 1, 2, 3, 4]);
            let without: Scalar = combiner.coefficients[..4].iter().zip(&shares).map(|(c, s)| c * **s).sum();
            let fifth = (other - without) * combiner.coefficients[4].invert();
            let seen = shares[..4].iter().map(|share| &**share).chain([&fifth]);
            assert_eq!(*combiner.combine(seen), other);
        }
    }

    /// The bits of four shares (threshold five) of two very different secrets are fair coins alike.
    #[test]
    fn fewer_shares_look_the_same_whatever_the_secret() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let trials = 4_000;
        for secret in [Scalar::ZERO, -Scalar::ONE] {
            let mut ones = [0u32; 4 * 31 * 8];
            for _ in 0..trials {
                let shares = split(&secret, 5, &[0, 1, 2, 3], &mut rng);
                for (bit, count) in ones.iter_mut().enumerate() {
                    // The last byte is left out: the order of the field is no power of two.
                    let (share, bit) = (bit / (31 * 8), bit % (31 * 8));
                    *count += u32::from(shares[share].as_bytes()[bit / 8] >> (bit % 8) & 1);
                }
            }
            // Binomial(4000, 1/2): standard deviation 31.6; five of them for 992 bits.
            assert!(ones.iter().all(|n| n.abs_diff(trials / 2) < 160), "{ones:?}");
        }
    }
}
