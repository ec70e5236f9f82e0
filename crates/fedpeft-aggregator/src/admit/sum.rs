//! Admission of the sum that an edge sends for its clients.
//!
//! Nobody above an edge sees the updates, so that it is believed in what each of them was; not in what they come to: no
//! sum moves the global adapter further than as many updates of its weight could.

use std::time::Instant;

use fedpeft_protocol::{ClientId, Digest, round::Payload};
use fedpeft_strategy::{Claim, SpoolError, max_partial_bytes, partial_distance};

use super::{fetch, plausible};
use crate::{
    clients::Accepted,
    drive::Drive,
    members::Member,
    round::{RoundState, Updates},
    spool::Adapter,
    stop::Stop,
};

/// Checks a sum and adds it to ours, or says why not.
pub(super) async fn admit(
    drive: &Drive<'_>,
    round: &mut RoundState,
    (client, member): (&ClientId, &Member),
    claimed: &Accepted,
    sum: Payload,
    reported: bool,
) -> Result<Result<(), String>, Stop> {
    if !member.aggregates {
        return Ok(Err(format!(
            "the update is a sum, but client {client} did not declare that it aggregates"
        )));
    }
    let (&Accepted { examples, loss, seconds, digest, .. }, updates) = (claimed, claimed.updates());
    if let Err(reason) = plausible(examples, member.examples, loss, seconds) {
        return Ok(Err(reason));
    }
    let claim = match Claim::new(updates, examples) {
        Ok(claim) => claim,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let sizes = 1..=max_partial_bytes(&drive.model.layout);
    let sum = match fetch(drive, round, (client, member), (sum, "sum"), sizes, reported).await? {
        Ok(sum) => sum,
        Err(reason) => return Ok(Err(reason)),
    };
    merge(drive, round, member, sum, digest, claim).await
}

/// Merges the sum, if it is what its digest says, and what updates of its weight can add up to.
async fn merge(
    drive: &Drive<'_>,
    round: &mut RoundState,
    member: &Member,
    sum: Adapter,
    digest: Digest,
    claim: Claim,
) -> Result<Result<(), String>, Stop> {
    let spec = &drive.record.spec;
    let bound = match spec.max_update_norm {
        Some(norm) => Some((norm, drive.global(&member.adapter).await?)),
        None => None,
    };
    let (kept, started) = (spec.keep_updates.then(|| sum.clone()), Instant::now());
    let layout = drive.model.layout.clone();
    let checked_and_merged = move |updates: &mut Updates| -> Result<Result<(), String>, SpoolError> {
        if let Adapter::Held(bytes) = &sum
            && Digest::of(bytes) != digest
        {
            return Ok(Err(format!("the sum's digest is {}, not {digest}", Digest::of(bytes))));
        }
        let mut merged = || {
            if let Some((norm, base)) = &bound {
                let far = partial_distance(&mut *sum.reader(), &layout, claim, &mut *base.reader())?;
                // What all updates are within, their mean is within; rounding aside.
                if far > norm * (1.0 + 1e-6) {
                    return Ok(Err(format!(
                        "the mean of the updates is {far:.6} away, max_update_norm is {norm}"
                    )));
                }
            }
            updates.fold.merge(&mut *sum.reader(), claim).map(Ok)
        };
        match merged() {
            Err(SpoolError::Accumulate(error)) => Ok(Err(error.to_string())),
            settled => settled,
        }
    };
    let merged = round.with_updates(checked_and_merged).await?.map_err(|error| drive.broken(error))?;
    round.folding += started.elapsed();
    if let (Ok(()), Some(sum)) = (&merged, kept) {
        drive.store(&sum).await?;
    }
    Ok(merged)
}
