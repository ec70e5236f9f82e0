//! A set of members of a cohort: who is in, one bit each.

use serde::{Deserialize, Serialize};

/// Place of a client in its cohort, from 0.
pub type Member = u32;

/// A set of members, as a bitmap: member `m` is bit `m % 8` of byte `m / 8`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Members {
    #[serde(with = "serde_bytes")]
    bits: Vec<u8>,
}

impl Members {
    /// Nobody, of a cohort of `cohort`.
    pub fn none(cohort: usize) -> Self {
        Self { bits: vec![0; cohort.div_ceil(8)] }
    }

    /// Those of `members`, of a cohort of `cohort`; others are left out.
    pub fn of(cohort: usize, members: impl IntoIterator<Item = Member>) -> Self {
        let mut set = Self::none(cohort);
        members.into_iter().for_each(|member| set.insert(member));
        set
    }

    /// Adds `member`, if the bitmap has a place for it.
    pub fn insert(&mut self, member: Member) {
        if let Some(byte) = self.bits.get_mut(member as usize / 8) {
            *byte |= 1 << (member % 8);
        }
    }

    /// Whether `member` is in.
    pub fn contains(&self, member: Member) -> bool {
        self.bits.get(member as usize / 8).is_some_and(|byte| byte & (1 << (member % 8)) != 0)
    }

    /// How many are in.
    pub fn len(&self) -> usize {
        self.bits.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// Whether nobody is in.
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|byte| *byte == 0)
    }

    /// Who is in, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Member> + '_ {
        (0..self.bits.len() as Member * 8).filter(|member| self.contains(*member))
    }

    /// Whether everybody here is in `other` as well.
    pub fn within(&self, other: &Self) -> bool {
        self.bits.len() == other.bits.len() && self.bits.iter().zip(&other.bits).all(|(a, b)| a & !b == 0)
    }

    /// Whether this is a set of members of a cohort of `cohort`: a remote sender may claim anything.
    pub fn fits(&self, cohort: usize) -> bool {
        self.bits.len() == cohort.div_ceil(8)
            && self.bits.last().is_none_or(|last| cohort.is_multiple_of(8) || last >> (cohort % 8) == 0)
    }

    /// The bitmap.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set = Members::of(10, [9, 0, 3, 99]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 3, 9]);
        assert_eq!((set.len(), set.is_empty()), (3, false));
        assert!(set.contains(9) && !set.contains(1) && !set.contains(500));
        assert!(set.within(&Members::of(10, 0..10)) && !set.within(&Members::of(10, 0..9)));
    }

    #[test]
    fn bits_past_the_cohort_do_not_fit() {
        assert!(Members::of(10, 0..10).fits(10));
        assert!(!Members::of(16, [12]).fits(10));
        assert!(!Members::of(8, [1]).fits(10));
        assert!(Members::of(16, 0..16).fits(16));
    }
}
