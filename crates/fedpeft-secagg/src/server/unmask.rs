//! The last step: secrets out of shares, masks off the sum.

use std::{collections::HashMap, num::NonZero, thread};

use curve25519_dalek::Scalar;
use x25519_dalek::PublicKey;
use zeroize::Zeroizing;

use super::{Record, Server, ServerError};
use crate::{
    client::pair_sign,
    encoding::Sum,
    keys::{commitment, mask_secret, pair_mask, self_mask},
    members::Member,
    message::Stage,
    shamir::Combiner,
    words::{Sign, Words},
};

impl Server {
    /// The sum of the updates of all who sent one, computed by as many as `threads` threads, each of which needs a vector of
    /// the update's size. The same bytes, whoever dropped out later and whichever holders gave shares.
    ///
    /// # Errors
    /// [`ServerError::Open`] before all stages are closed; [`ServerError::BelowThreshold`] if too few holders of somebody's
    /// shares are left; [`ServerError::WrongShares`] if shares are not those of what their owner announced.
    pub fn sum(&self, threads: NonZero<usize>) -> Result<Sum, ServerError> {
        if let Some(stage) = self.stage() {
            return Err(ServerError::Open { stage });
        }
        self.complete()?;
        let sharers: Vec<_> = self.set(Stage::Share).iter().collect();
        // Where in an answer the share of whom is.
        let order: HashMap<_, _> =
            self.set(Stage::Unmask).iter().map(|holder| (holder, self.held_by(holder))).collect();
        let part = &|sharers: &[Member], mut words: Words| {
            let mut unmasking =
                Unmasking { server: self, order: &order, combiner: Combiner::new(Vec::new()) };
            sharers.iter().try_for_each(|member| unmasking.unmask(*member, &mut words)).map(|()| words)
        };
        let size = sharers.len().div_ceil(threads.get()).max(1);
        let (own, others) = sharers.split_at(size.min(sharers.len()));
        thread::scope(|scope| {
            let zeros = || Words::zeros(self.sum.bits(), self.sum.len());
            let others: Vec<_> =
                others.chunks(size).map(|sharers| scope.spawn(move || part(sharers, zeros()))).collect();
            let mut words = part(own, self.sum.clone())?;
            for other in others {
                // A thread that panicked is a defect that the caller should see.
                words.add(&other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            words.reduce();
            Ok(Sum { encoding: self.session.params().encoding, words })
        })
    }

    /// Whose shares `holder` gives, in the order of its answer.
    fn held_by(&self, holder: Member) -> Vec<Member> {
        let sharers = self.set(Stage::Share);
        self.session.holders(holder).into_iter().filter(|member| sharers.contains(*member)).collect()
    }
}

struct Unmasking<'a> {
    server: &'a Server,
    order: &'a HashMap<Member, Vec<Member>>,
    /// Of the holders that were used last: in a complete graph they are the same for all.
    combiner: Combiner,
}

impl Unmasking<'_> {
    /// Takes what masks of `member` are in the sum off `words`.
    fn unmask(&mut self, member: Member, words: &mut Words) -> Result<(), ServerError> {
        let secret = self.secret(member)?;
        let (session, record) = (&self.server.session, self.record(member));
        let wrong = || ServerError::WrongShares { client: session.name(member) };
        if self.server.set(Stage::Mask).contains(member) {
            if commitment(session, member, &secret)? != record.commitment {
                return Err(wrong());
            }
            words.mask(&self_mask(session, member, &secret)?, Sign::Subtract)?;
            return Ok(());
        }
        let secret = mask_secret(session, member, &secret)?;
        if record.keys.is_none_or(|keys| keys.mask != PublicKey::from(&secret).to_bytes()) {
            return Err(wrong());
        }
        for other in self.server.neighbours(member, Stage::Mask) {
            let public = self.record(other).keys.ok_or_else(wrong)?.mask;
            let key = pair_mask(session, member, other, &secret, &public)?;
            // What `member` would have put on is the opposite of what `other` did.
            words.mask(&key, pair_sign(member, other))?;
        }
        Ok(())
    }

    fn secret(&mut self, member: Member) -> Result<Zeroizing<Scalar>, ServerError> {
        let (session, need) = (&self.server.session, self.server.session.threshold());
        let mut holders = session.holders(member);
        holders.retain(|holder| self.order.contains_key(holder));
        let have = holders.len();
        if have < need {
            return Err(ServerError::BelowThreshold { client: session.name(member), have, need });
        }
        holders.truncate(need);
        if self.combiner.holders() != holders {
            self.combiner = Combiner::new(holders);
        }
        let share = |holder: &Member| {
            let place = self.order.get(holder)?.binary_search(&member).ok()?;
            let bytes = self.record(*holder).shares.get(place)?;
            Option::from(Scalar::from_canonical_bytes(*bytes)).map(Zeroizing::new)
        };
        let shares: Option<Vec<_>> = self.combiner.holders().iter().map(share).collect();
        let shares = shares.ok_or_else(|| ServerError::WrongShares { client: session.name(member) })?;
        Ok(self.combiner.combine(shares.iter().map(|share| &**share)))
    }

    fn record(&self, member: Member) -> &Record {
        &self.server.members[member as usize]
    }
}
