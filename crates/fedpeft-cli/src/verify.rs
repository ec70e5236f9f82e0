//! `fedpeft run verify`: whether a run is what its ledger says.
//!
//! The ledger alone proves that no update counts twice and that nothing was changed since. Where the run kept its
//! updates, every round is aggregated again and must give the same bytes.

use std::{collections::BTreeMap, io::Cursor};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use fedpeft_artifacts::manifest::Manifest;
use fedpeft_bus::Bus;
use fedpeft_codec::{Codec, Layout, Scope, as_bytes, decode_update, encode};
use fedpeft_protocol::{
    Digest,
    ledger::{self, Checked},
    round::{ClientOutcome, RoundReport},
    run::{RunSpec, RunView},
};
use fedpeft_strategy::{
    Claim, Closing, Encoded, Fold, Kept, Rule, Spool, Weight, lora::Residual, max_partial_bytes, of_spec,
};
use serde::Serialize;

use crate::view::{Sink, View};

/// Manifests list tensors; thousands of them take less.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// What was found to be true.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// Name of the run.
    pub run: String,
    /// What the ledger holds.
    #[serde(flatten)]
    pub ledger: Checked,
    /// Its hash.
    pub ledger_sha256: Digest,
    /// Digest of the global adapter that it leads to.
    pub adapter_sha256: Digest,
    /// Rounds that were aggregated again and gave the same bytes.
    pub aggregated_again: u32,
}

impl Verified {
    /// One line for people.
    pub fn human(&self) -> String {
        let Checked { rounds, updates, weight } = self.ledger;
        let again = match self.aggregated_again {
            0 => "its updates were not kept, so that none was aggregated again".to_owned(),
            some => format!("{some} aggregated again, with the same bytes"),
        };
        format!(
            "run {}: {rounds} rounds, {updates} updates of weight {weight}, each counted once; {again}\n\
             ledger sha256 {}\nadapter sha256 {}",
            self.run, self.ledger_sha256, self.adapter_sha256
        )
    }
}

/// Checks the ledger and, where the updates were kept, every sum.
pub async fn verify(bus: &Bus, view: &RunView) -> Result<Verified> {
    let record = &view.record;
    let ledger = ledger::check(view).with_context(|| format!("run {} does not add up", record.run))?;
    let mut aggregated_again = 0;
    if record.spec.keep_updates {
        let (manifest, _) = bus.get_blob(&record.manifest, MANIFEST_LIMIT).await?;
        let manifest = Manifest::from_json(&manifest)?;
        let scope = Scope::new(&manifest.adapter, &record.spec.training.local)?;
        let layout = scope.shared();
        let progress = View::new(0, Sink::Stderr);
        let mut kept = Carried::default();
        for report in &view.rounds {
            let (round, run) = (report.round, &record.run);
            progress.spin(format!("aggregating round {round} again"));
            let found = Digest::of(aggregate(bus, view, report, layout, &mut kept).await?);
            if found != report.adapter {
                let said = report.adapter;
                bail!("round {round} of run {run}: its updates give adapter {found}, its report says {said}");
            }
            let residual = kept.residual.as_ref().map(Digest::of);
            if residual != report.residual {
                let name = |digest: Option<Digest>| digest.map_or("none".to_owned(), |it| it.to_string());
                let (found, said) = (name(residual), name(report.residual));
                bail!(
                    "round {round} of run {run}: its updates give residual {found}, its report says {said}"
                );
            }
            aggregated_again += 1;
        }
        progress.finish();
    }
    Ok(Verified {
        run: record.run.to_string(),
        ledger,
        ledger_sha256: record.ledger,
        adapter_sha256: record.adapter,
        aggregated_again,
    })
}

/// What one round hands on to the next, beside the global adapter.
#[derive(Default)]
struct Carried {
    /// What the strategy keeps.
    moments: Option<Vec<u8>>,
    /// What the adapter's LoRA factors do not hold.
    residual: Option<Vec<u8>>,
}

/// The global adapter that the updates of a round lead to.
async fn aggregate(
    bus: &Bus,
    view: &RunView,
    report: &RoundReport,
    layout: &Layout,
    carried: &mut Carried,
) -> Result<Vec<u8>> {
    let fetch_within = async |digest: &Digest, limit: u64, what: &str| {
        let blob = bus.get_blob(digest, limit).await;
        let (bytes, _) = blob.with_context(|| format!("{what} of round {} cannot be read", report.round))?;
        anyhow::Ok(bytes)
    };
    let fetch = async |digest: &Digest, what: &str| fetch_within(digest, layout.bytes(), what).await;
    let spec = &view.record.spec;
    let rule = Rule::of_spec(spec, None);
    let mut fold = Fold::new(rule, layout.clone())?;
    let (mut examples, mut bases) = (Vec::new(), BTreeMap::<Digest, u64>::new());
    for client in &report.clients {
        let ClientOutcome::Accepted { digest, weight, staleness, .. } = client.outcome else { continue };
        if client.updates > 0 {
            let what = format!("the sum of edge {}", client.client);
            let sum = fetch_within(&digest, max_partial_bytes(layout), &what).await?;
            fold.merge(&mut Cursor::new(sum), Claim::new(client.updates, weight)?)?;
            examples.push(client.examples);
            continue;
        }
        let began = report.round.saturating_sub(staleness);
        let base = view.rounds.iter().find(|earlier| earlier.round == began).map(|r| r.previous);
        let base = base.with_context(|| format!("round {began} has no report"))?;
        let held = match rule.reads_base() || spec.uplink.delta() {
            true => fetch(&base, "the adapter that an update began with").await?,
            false => Bytes::new(),
        };
        let (update, weight) =
            (fetch(&digest, &format!("the update of {}", client.client)).await?, Weight::new(weight)?);
        let update = decoded(&update, &held, spec, layout)
            .with_context(|| format!("the update of {} in round {}", client.client, report.round))?;
        fold.add(Encoded::Held(update.clone()), &mut Cursor::new(held), weight)?;
        fold.keep(client.client.as_str(), Box::new(Cursor::new(update)), weight);
        examples.push(client.examples);
        *bases.entry(base).or_default() += weight.get();
    }
    if rule.subtracts_bases() {
        // As the aggregator does: each base once.
        for (base, weight) in bases {
            let base = fetch(&base, "an adapter that updates began with").await?;
            fold.subtract(&mut Cursor::new(base), weight)?;
        }
    }
    let global = fetch(&report.previous, "the adapter before it").await?;
    let (mut before, mut after, mut next) = (carried.moments.take().map(Cursor::new), Vec::new(), Vec::new());
    let state = Kept { before: before.as_mut().map(|cursor| cursor as &mut dyn Spool), after: &mut after };
    let closing = Closing {
        global: &mut Cursor::new(global.clone()),
        examples: &examples,
        // Private runs keep no updates.
        noise: &mut |_| (),
    };
    of_spec(&spec.strategy).next(&mut Cursor::new(global), state, &mut fold.close(closing), &mut next)?;
    carried.moments = Some(after);
    if !spec.downlink.is_plain() {
        let codec = Codec::new(spec.downlink, layout);
        let (_, received) = codec.broadcast(&fedpeft_codec::view(&next, layout)?, spec.seed, report.round)?;
        next = as_bytes(&received).into_owned();
    }
    if rule == Rule::Exact {
        let (mut before, mut after) = (carried.residual.take().map(Cursor::new), Vec::new());
        fold.residual(Residual {
            before: before.as_mut().map(|cursor| cursor as &mut dyn Spool),
            adapter: &mut Cursor::new(&next),
            out: &mut after,
        })?;
        carried.residual = Some(after);
    }
    Ok(next)
}

/// The plain values of an update, which its client began with `base`.
fn decoded(update: &Bytes, base: &[u8], spec: &RunSpec, layout: &Layout) -> Result<Bytes> {
    let (uplink, ranks) = (spec.uplink, spec.mixes_ranks());
    if uplink.is_plain() && !ranks {
        return Ok(update.clone());
    }
    let base = if uplink.delta() { Some(fedpeft_codec::view(base, layout)?) } else { None };
    let values = decode_update((uplink, ranks), layout, update, base.as_deref())?;
    Ok(encode(&values))
}
