//! How many neighbours and which threshold a cohort needs.
//!
//! The bounds are those of Bell et al. (CCS 2020, section 3), computed exactly rather than by tail inequalities. Of `n`
//! members in random seats, `c` are corrupt and share all they know with the server, and `d` drop out:
//!
//! 1. *Nobody is unmasked twice.* A server that tells members different stories gets at most one kind of share from
//!    an honest holder and both from a corrupt one. It has both secrets of a member only if
//!    `holders + corrupt holders >= 2 threshold`. With hypergeometric neighbours this happens to any member with
//!    probability at most 2^-41. (It implies that corrupt holders alone are fewer than the threshold.)
//! 2. *The honest survivors hang together*, so that no smaller sum than theirs comes out. Around a table, this fails only
//!    if `degree / 2` neighbours in a row are corrupt or gone: at most 2^-41 again.
//! 3. *Everybody's secrets can be recovered*: enough holders stay, with probability 1 - 2^-30.
//!
//! In the complete graph, all three are certain when `threshold > (n + c) / 2` and `threshold <= n - d`.

use crate::{graph::Graph, params::ParamsError};

/// Secrecy fails with probability at most 2^-40.
const SECRECY: f64 = -40.0 * std::f64::consts::LN_2;
/// Recovery fails with probability at most 2^-30.
const RECOVERY: f64 = -30.0 * std::f64::consts::LN_2;

/// Graph, threshold and smallest sum of a cohort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Who is joined with whom.
    pub graph: Graph,
    /// Shares that recover a secret.
    pub threshold: u32,
    /// Members without whom there is no sum.
    pub quorum: u32,
}

impl Plan {
    /// Everybody with everybody, for `cohort` members of whom a share `dropout` may drop out and a share `corrupt` may
    /// collude with the server.
    ///
    /// # Errors
    /// [`ParamsError::NoPlan`] if no threshold serves both.
    pub fn complete(cohort: usize, dropout: f64, corrupt: f64) -> Result<Self, ParamsError> {
        let Counts { gone, corrupt: colluding } = Counts::of(cohort, dropout, corrupt)?;
        let threshold = (cohort + colluding) / 2 + 1;
        if threshold > cohort - gone {
            return Err(ParamsError::NoPlan { cohort, dropout, corrupt });
        }
        Ok(Self { graph: Graph::Complete, threshold: threshold as u32, quorum: (cohort - gone) as u32 })
    }

    /// The smallest number of neighbours that serves; where that is everybody, the complete graph.
    ///
    /// # Errors
    /// [`ParamsError::NoPlan`] if not even the complete graph serves.
    pub fn sparse(cohort: usize, dropout: f64, corrupt: f64) -> Result<Self, ParamsError> {
        let complete = Self::complete(cohort, dropout, corrupt)?;
        let counts = Counts::of(cohort, dropout, corrupt)?;
        for degree in (2..cohort.saturating_sub(1)).step_by(2) {
            if let Some(threshold) = counts.threshold(cohort, degree) {
                let graph = Graph::Sparse { degree: degree as u32 };
                return Ok(Self { graph, threshold: threshold as u32, quorum: complete.quorum });
            }
        }
        Ok(complete)
    }

    /// Members of a sum of `quorum` that do not collude with the server: the share of the whole cohort that may collude is
    /// that of any member's holders ([`Session::tolerated`](crate::Session::tolerated)).
    pub fn honest(&self, cohort: usize) -> usize {
        let holders = match self.graph {
            Graph::Complete => cohort,
            Graph::Sparse { degree } => degree as usize + 1,
        };
        let tolerated = (2 * self.threshold as usize).saturating_sub(holders + 1);
        let colluding = (tolerated * cohort).div_ceil(holders.max(1));
        (self.quorum as usize).saturating_sub(colluding)
    }
}

/// Members that fail, at most.
struct Counts {
    gone: usize,
    corrupt: usize,
}

impl Counts {
    fn of(cohort: usize, dropout: f64, corrupt: f64) -> Result<Self, ParamsError> {
        let share = |share: f64| (0.0..1.0).contains(&share).then_some((share * cohort as f64) as usize);
        match (share(dropout), share(corrupt)) {
            (Some(gone), Some(corrupt)) if cohort >= 2 => Ok(Self { gone, corrupt }),
            _ => Err(ParamsError::NoPlan { cohort, dropout, corrupt }),
        }
    }

    /// The smallest threshold that keeps secrets with `degree` neighbours, if enough holders stay for it.
    fn threshold(&self, cohort: usize, degree: usize) -> Option<usize> {
        let (others, everybody) = (cohort - 1, (cohort as f64).ln());
        let secrecy = SECRECY - std::f64::consts::LN_2 - everybody;
        if self.broken(cohort, degree) > secrecy {
            return None;
        }
        let holders = degree + 1;
        let threshold = (holders / 2 + 1..=holders).find(|threshold| {
            2 * threshold > holders
                && ln_tail(others, self.corrupt, degree, 2 * threshold - holders) <= secrecy
        })?;
        // A member that is gone holds no share of its own, so `degree` holders at most are left.
        let lost = ln_tail(others, self.gone, degree, (degree + 1).saturating_sub(threshold));
        (threshold <= degree && lost <= RECOVERY - everybody).then_some(threshold)
    }

    /// Logarithm of the chance that `degree / 2` members in given neighbouring seats are all corrupt or gone.
    fn broken(&self, cohort: usize, degree: usize) -> f64 {
        let missing = self.gone + self.corrupt;
        (0..degree / 2)
            .map(|seat| (missing.saturating_sub(seat) as f64 / (cohort - seat) as f64).ln())
            .sum::<f64>()
    }
}

/// Logarithm of P[X >= least], where X of `drawn` are marked when `marked` of `all` are.
fn ln_tail(all: usize, marked: usize, drawn: usize, least: usize) -> f64 {
    let most = marked.min(drawn);
    let fewest = (drawn + marked).saturating_sub(all);
    let terms: Vec<f64> = (least.max(fewest)..=most)
        .map(|x| ln_choose(marked, x) + ln_choose(all - marked, drawn - x) - ln_choose(all, drawn))
        .collect();
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    (largest + terms.iter().map(|term| (term - largest).exp()).sum::<f64>().ln()).min(0.0)
}

fn ln_choose(n: usize, k: usize) -> f64 {
    let ln_factorial = |n: usize| libm::lgamma(n as f64 + 1.0);
    ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_those_of_the_hypergeometric_distribution() {
        // 5 of 50 marked, 10 drawn: P[X >= 1] = 1 - C(45,10)/C(50,10), P[X >= 4] from the same formula.
        assert!((ln_tail(50, 5, 10, 1).exp() - 0.689_437_2).abs() < 1e-6);
        assert!((ln_tail(50, 5, 10, 4).exp() - 0.004_083_5).abs() < 1e-6);
        assert_eq!(ln_tail(50, 5, 10, 0), 0.0);
        assert_eq!(ln_tail(50, 5, 10, 6), f64::NEG_INFINITY);
    }

    #[test]
    fn complete_thresholds() {
        let plan = Plan::complete(30, 0.2, 0.2).unwrap();
        assert_eq!((plan.threshold, plan.quorum), (19, 24));
        // A majority, when nobody colludes.
        assert_eq!(Plan::complete(3, 0.34, 0.0).unwrap().threshold, 2);
        assert!(matches!(Plan::complete(30, 0.5, 0.2), Err(ParamsError::NoPlan { .. })));
        for (cohort, dropout, corrupt) in
            [(1, 0.0, 0.0), (10, f64::NAN, 0.0), (10, 0.0, 1.0), (10, -0.1, 0.0)]
        {
            assert!(Plan::complete(cohort, dropout, corrupt).is_err());
        }
    }

    /// The same bounds in exact rational arithmetic, by another program, give these.
    #[test]
    fn sparse_plans_are_the_smallest_that_serve() {
        let cases = [
            (10, 0.2, 0.1, 8, 6),
            (100, 0.2, 0.1, 52, 32),
            (1_000, 0.2, 0.1, 230, 145),
            (1_000, 0.1, 0.1, 114, 78),
            (1_000, 0.1, 0.05, 92, 60),
            (10_000, 0.1, 0.1, 148, 101),
        ];
        for (cohort, dropout, corrupt, degree, threshold) in cases {
            let plan = Plan::sparse(cohort, dropout, corrupt).unwrap();
            assert_eq!(
                (plan.graph, plan.threshold),
                (Graph::Sparse { degree }, threshold),
                "{cohort} clients"
            );
        }
    }

    #[test]
    fn degree_grows_slowly_with_the_cohort_and_cohorts_that_need_it_are_complete() {
        let degree = |cohort| match Plan::sparse(cohort, 0.1, 0.1).unwrap().graph {
            Graph::Complete => cohort - 1,
            Graph::Sparse { degree } => degree as usize,
        };
        assert_eq!(Plan::sparse(20, 0.3, 0.3), Plan::complete(20, 0.3, 0.3));
        let degrees = [1_000, 2_000, 4_000, 8_000].map(degree);
        assert!(degrees.is_sorted() && degrees[3] < degrees[0] + 60, "{degrees:?}");
    }
}
