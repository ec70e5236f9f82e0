//! Secure aggregation in a round: what its session is, and how far it has come.
//!
//! The session follows from the record alone, so that every owner of the run has the same. Who has answered is in the
//! stream of updates; who was in time is decided once, see [`crate::phase::secure`].

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_protocol::{
    ClientId, Digest,
    round::Payload,
    run::{MaskGraph, OpenRound, PrivacyState, RunRecord, RunSpec, SecureSpec},
    secure::{OpenSecure, SecureReport, SecureStage},
};
use fedpeft_secagg::{Encoding, Member, Members, Params, ParamsError, Peer, Plan, Server, Session, Stage};

use crate::{
    drive::Drive,
    model::ENVELOPE,
    phase::select::Trainers,
    round::{RoundState, Updates},
    stop::Stop,
};

/// The secure part of a round in progress.
pub(crate) struct Secure {
    pub session: Session,
    /// The parameters, for the clients.
    pub params: Payload,
    /// The stage that is open; none when all have ended.
    pub stage: Option<SecureStage>,
    /// Who is asked in it.
    pub asked: BTreeSet<ClientId>,
    /// Who has answered in it.
    pub answered: BTreeSet<ClientId>,
    /// Digest of the newest answer of each client.
    pub said: BTreeMap<ClientId, Digest>,
    /// Who has left since it was trained, and why.
    pub left: BTreeMap<ClientId, String>,
    /// When this owner asked in the open stage, in milliseconds since the Unix epoch: one that takes over begins anew.
    pub asked_ms: u64,
    /// Sum of the weights, once the masks are off.
    pub weight: u64,
    /// Clients that ended each stage, and when.
    ended: Vec<(u32, u64)>,
    opened_ms: u64,
}

impl Secure {
    /// Of a round before anybody has answered; none where the run has no secure aggregation.
    pub fn open(drive: &Drive<'_>, open: &OpenRound) -> Result<Option<Self>, Stop> {
        let (Some(spec), Some(secure)) = (&drive.record.spec.secure_aggregation, &open.secure) else {
            return Ok(None);
        };
        let failed = |error: &dyn std::fmt::Display| {
            Stop::Failed(format!("round {} cannot be secure: {error}", open.round))
        };
        let params = params(drive.record, spec, open, secure, drive.model.layout.values())
            .map_err(|error| failed(&error))?;
        let encoded = params.encode().map_err(|error| failed(&error))?;
        let session = Session::new(params).map_err(|error| failed(&error))?;
        Ok(Some(Self {
            session,
            params: Payload::inline(encoded),
            stage: Some(SecureStage::Advertise),
            asked: open.cohort.iter().cloned().collect(),
            answered: BTreeSet::new(),
            said: BTreeMap::new(),
            left: BTreeMap::new(),
            asked_ms: open.opened_ms,
            weight: 0,
            ended: Vec::new(),
            opened_ms: open.opened_ms,
        }))
    }

    /// Puts the parameters where clients can get them: beside the adapter in the task, or in a blob.
    pub async fn place_params(&mut self, drive: &Drive<'_>) -> Result<(), Stop> {
        let adapter = if drive.fits_a_message() { drive.model.layout.bytes() } else { 0 };
        if let Payload::Message { data, digest } = &self.params
            && adapter + data.len() as u64 + ENVELOPE > drive.bus.max_payload() as u64
        {
            let (digest, size) = (*digest, data.len() as u64);
            drive.bus.put_blob(data.clone()).await?;
            self.params = Payload::Blob { digest, size };
        }
        Ok(())
    }

    /// The client that is this member.
    pub fn client(&self, member: Member) -> Option<ClientId> {
        ClientId::new(self.session.name(member)).ok()
    }

    /// Those of `members`.
    pub fn clients(&self, members: &Members) -> BTreeSet<ClientId> {
        members.iter().filter_map(|member| self.client(member)).collect()
    }

    /// Clients that are asked in the open stage and may still answer.
    pub fn outstanding(&self) -> BTreeSet<ClientId> {
        let may = |client: &&ClientId| !self.answered.contains(*client) && !self.left.contains_key(*client);
        self.asked.iter().filter(may).cloned().collect()
    }

    /// Notes that the open stage ended with `members`.
    pub fn end(&mut self, members: &Members, at_ms: u64) {
        self.ended.push((members.len() as u32, at_ms));
        self.stage = SecureStage::ALL.get(self.ended.len()).copied();
        self.asked = self.clients(members);
        self.answered.clear();
    }

    /// Stages that have ended.
    pub fn ended(&self) -> usize {
        self.ended.len()
    }

    /// For the report of the round.
    pub fn report(&self) -> SecureReport {
        let params = self.session.params();
        let starts = [self.opened_ms].into_iter().chain(self.ended.iter().map(|(_, at_ms)| *at_ms));
        let seconds = self.ended.iter().zip(starts).map(|((_, at_ms), start)| at_ms.saturating_sub(start));
        SecureReport {
            session: Digest::from_bytes(*self.session.id()),
            stages: self.ended.iter().map(|(clients, _)| *clients).collect(),
            quorum: params.quorum,
            threshold: params.threshold,
            neighbours: (self.session.holders_each() - 1) as u32,
            bits: params.encoding.bits,
            weight: self.weight,
            seconds: seconds.map(|ms| ms as f64 / 1000.0).collect(),
        }
    }
}

impl RoundState {
    /// Runs `work` on the server of secure aggregation, on a thread that may be busy for a while.
    pub async fn with_server<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Server) -> T + Send + 'static,
    ) -> Result<T, Stop> {
        let worked = self.with_updates(|Updates { server, .. }| server.as_mut().map(work)).await?;
        worked.ok_or_else(|| Stop::Failed("the round has no secure aggregation".to_owned()))
    }
}

/// Whether cohorts of the run can be secure, with adapters of so many values.
///
/// # Errors
/// Shares of clients that no threshold serves, a quorum below it, a grid too fine for any word, or noise that is too little
/// or too much for the grid.
pub(crate) fn check(spec: &RunSpec, privacy: Option<&PrivacyState>, values: usize) -> Result<(), String> {
    let Some(secure) = &spec.secure_aggregation else { return Ok(()) };
    let cohort = spec.cohort as usize;
    let plan = plan(secure, cohort, spec.quorum()).map_err(|error| format!("secure_aggregation: {error}"))?;
    if plan.quorum < plan.threshold {
        return Err(format!(
            "quorum is {}, and {} shares recover a secret of secure_aggregation: raise it, or lower \
             secure_aggregation.corrupt",
            plan.quorum, plan.threshold
        ));
    }
    let numbers = Numbers { cohort, values, most_examples: 1, plan };
    encoding(secure, privacy, numbers).map(drop).map_err(|error| format!("secure_aggregation: {error}"))
}

/// What is known of a cohort's clients to one another, where the run has secure aggregation.
pub(crate) fn opened(
    spec: &RunSpec,
    cohort: &[ClientId],
    present: &Trainers,
) -> Result<Option<OpenSecure>, Stop> {
    if spec.secure_aggregation.is_none() {
        return Ok(None);
    }
    let identity =
        |client: &ClientId| present.get(client).and_then(|trainer| trainer.identity.as_deref().copied());
    let identities: Option<Vec<_>> = cohort.iter().map(identity).collect();
    let missing = || Stop::Failed("a client of the cohort has no identity for secure aggregation".to_owned());
    Ok(Some(OpenSecure { identities: identities.ok_or_else(missing)?, closed: Vec::new() }))
}

fn plan(secure: &SecureSpec, cohort: usize, quorum: u32) -> Result<Plan, ParamsError> {
    let plan = match secure.graph {
        MaskGraph::Complete => Plan::complete(cohort, secure.dropout, secure.corrupt)?,
        MaskGraph::Sparse => Plan::sparse(cohort, secure.dropout, secure.corrupt)?,
    };
    Ok(Plan { quorum, ..plan })
}

/// What an encoding has to fit.
struct Numbers {
    cohort: usize,
    values: usize,
    most_examples: u32,
    plan: Plan,
}

/// The fewest bits that sums of these numbers need. Where the run is private, clients add the noise.
fn encoding(
    secure: &SecureSpec,
    privacy: Option<&PrivacyState>,
    Numbers { cohort, values, most_examples, plan }: Numbers,
) -> Result<Encoding, ParamsError> {
    if let Some(&PrivacyState { clip_norm, noise_multiplier, .. }) = privacy {
        let norm = clip_norm as f32;
        return Encoding::private(
            cohort,
            values,
            norm,
            secure.precision,
            noise_multiplier,
            plan.honest(cohort),
        );
    }
    let fitted = Encoding::fit(cohort, secure.bound, secure.precision, most_examples, 0)?;
    Ok(Encoding { norm: secure.norm, ..fitted })
}

/// The parameters of a round. An attempt at a round is a session of its own: its name has the fencing token.
fn params(
    record: &RunRecord,
    spec: &SecureSpec,
    open: &OpenRound,
    secure: &OpenSecure,
    values: usize,
) -> Result<Params, ParamsError> {
    let mut cohort: Vec<Peer> = open
        .cohort
        .iter()
        .zip(&secure.identities)
        .map(|(client, identity)| Peer { client: client.to_string(), identity: *identity.as_bytes() })
        .collect();
    cohort.sort_unstable_by(|a, b| a.client.cmp(&b.client));
    let plan = plan(spec, cohort.len(), record.spec.quorum())?;
    let most_examples = open.examples.iter().copied().max().unwrap_or(1).max(1);
    let most_examples = u32::try_from(most_examples).unwrap_or(u32::MAX);
    let numbers = Numbers { cohort: cohort.len(), values, most_examples, plan };
    let encoding = encoding(spec, record.privacy.as_ref(), numbers)?;
    let values = u32::try_from(values).map_err(|_| ParamsError::Values(u32::MAX))?;
    Ok(Params::new(&session_name(record, open), open.round, cohort, plan, values, encoding))
}

/// What a session calls the run.
fn session_name(record: &RunRecord, open: &OpenRound) -> String {
    format!("{}#{}", record.run, open.epoch)
}

/// The stage as the library calls it.
pub(crate) fn stage(stage: SecureStage) -> Stage {
    match stage {
        SecureStage::Advertise => Stage::Advertise,
        SecureStage::Share => Stage::Share,
        SecureStage::Mask => Stage::Mask,
        SecureStage::Confirm => Stage::Confirm,
        SecureStage::Unmask => Stage::Unmask,
    }
}
