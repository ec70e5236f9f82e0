//! What everybody in a round must agree on, and the name of that agreement.

mod error;

use std::sync::Arc;

use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use error::ParamsError;

use crate::{
    encoding::Encoding,
    graph::{Graph, Topology},
    members::Member,
    plan::Plan,
};

/// Most members of a cohort.
pub const MAX_COHORT: usize = 10_000;
/// Most values of an update.
pub const MAX_VALUES: u32 = 1 << 28;
/// Longest name of a run or a client, in bytes.
pub const MAX_NAME: usize = 256;

/// One member of the cohort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Name of the client.
    pub client: String,
    /// Ed25519 key by which others know it. Against a malicious server it must come from elsewhere:
    /// [`Session::pinned`].
    #[serde(with = "serde_bytes")]
    pub identity: [u8; 32],
}

/// What everybody in a round must agree on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Params {
    /// Name of the run.
    pub run: String,
    /// Round within the run.
    pub round: u32,
    /// Who takes part, by name ascending. A client is known by its place here.
    pub cohort: Vec<Peer>,
    /// Who masks with whom.
    pub graph: Graph,
    /// Shares that recover a secret.
    pub threshold: u32,
    /// Members without whom there is no sum.
    pub quorum: u32,
    /// Values of an update.
    pub values: u32,
    /// How values become integers.
    pub encoding: Encoding,
}

/// Agreed parameters, checked, with the graph they define. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    params: Params,
    id: [u8; 32],
    topology: Topology,
    identities: Vec<VerifyingKey>,
}

impl Params {
    /// The parameters of a round by a plan.
    pub fn new(
        run: &str,
        round: u32,
        cohort: Vec<Peer>,
        plan: Plan,
        values: u32,
        encoding: Encoding,
    ) -> Self {
        let Plan { graph, threshold, quorum } = plan;
        Self { run: run.to_owned(), round, cohort, graph, threshold, quorum, values, encoding }
    }
}

impl Session {
    /// Checks parameters, which may come from anywhere.
    ///
    /// # Errors
    /// [`ParamsError`], of the first thing that is wrong.
    pub fn new(params: Params) -> Result<Self, ParamsError> {
        let identities = check(&params)?;
        let id = id(&params);
        let topology = Topology::new(params.graph, params.cohort.len(), &id);
        Ok(Self(Arc::new(Inner { params, id, topology, identities })))
    }

    /// Checks that every member has the identity by which `known` knows it. A client that takes identities from the
    /// server has only the server's word that its peers are not the server itself.
    ///
    /// # Errors
    /// [`ParamsError::NotPinned`] names the first other one.
    pub fn pinned(&self, known: impl Fn(&str) -> Option<[u8; 32]>) -> Result<(), ParamsError> {
        match self.params().cohort.iter().find(|peer| known(&peer.client) != Some(peer.identity)) {
            Some(peer) => Err(ParamsError::NotPinned(peer.client.clone())),
            None => Ok(()),
        }
    }

    /// What was agreed.
    pub fn params(&self) -> &Params {
        &self.0.params
    }

    /// Digest of all parameters. Every key, ciphertext and signature is bound to it.
    pub fn id(&self) -> &[u8; 32] {
        &self.0.id
    }

    /// Members of the cohort.
    pub fn size(&self) -> usize {
        self.0.params.cohort.len()
    }

    /// The member that is called `client`.
    pub fn member(&self, client: &str) -> Option<Member> {
        let place = self.0.params.cohort.binary_search_by(|peer| peer.client.as_str().cmp(client));
        place.ok().map(|place| place as Member)
    }

    /// Name of `member`, for messages.
    pub fn name(&self, member: Member) -> String {
        self.0
            .params
            .cohort
            .get(member as usize)
            .map_or_else(|| format!("#{member}"), |peer| peer.client.clone())
    }

    /// Words of a masked update: its values and its weight.
    pub fn words(&self) -> usize {
        self.0.params.values as usize + 1
    }

    /// Members that may collude with the server, among the holders of any one member's shares, without learning more
    /// than the sum: even if the server tells members different stories.
    pub fn tolerated(&self) -> usize {
        (2 * self.threshold()).saturating_sub(self.holders_each() + 1)
    }

    /// What the noise of the smallest sum's honest members comes to, as a noise multiplier of differential privacy: 0 where
    /// there is no noise. See [`Encoding::private`].
    pub fn noise_multiplier(&self) -> f64 {
        let Params { graph, threshold, quorum, values, encoding, .. } = *self.params();
        let honest = Plan { graph, threshold, quorum }.honest(self.size());
        encoding.noise_multiplier(values as usize, honest)
    }

    /// Members that hold shares of any one member's secrets: its neighbours and itself.
    pub fn holders_each(&self) -> usize {
        self.0.topology.holders_each()
    }

    pub(crate) fn holders(&self, member: Member) -> Vec<Member> {
        self.0.topology.holders(member)
    }

    pub(crate) fn threshold(&self) -> usize {
        self.0.params.threshold as usize
    }

    pub(crate) fn quorum(&self) -> usize {
        self.0.params.quorum as usize
    }

    pub(crate) fn identity(&self, member: Member) -> Option<&VerifyingKey> {
        self.0.identities.get(member as usize)
    }
}

/// SHA-256 of the parameters, each of variable length behind its length.
fn id(params: &Params) -> [u8; 32] {
    let mut digest = Sha256::new_with_prefix(b"fedpeft-secagg/1 session");
    let mut text = |text: &[u8]| {
        digest.update((text.len() as u32).to_le_bytes());
        digest.update(text);
    };
    text(params.run.as_bytes());
    text(&params.round.to_le_bytes());
    for peer in &params.cohort {
        text(peer.client.as_bytes());
        text(&peer.identity);
    }
    let degree = match params.graph {
        Graph::Complete => 0,
        Graph::Sparse { degree } => degree,
    };
    [degree, params.threshold, params.quorum, params.values]
        .iter()
        .for_each(|number| text(&number.to_le_bytes()));
    text(&params.encoding.canonical());
    digest.finalize().into()
}

fn check(params: &Params) -> Result<Vec<VerifyingKey>, ParamsError> {
    let cohort = params.cohort.len();
    if !(2..=MAX_COHORT).contains(&cohort) {
        return Err(ParamsError::Cohort(cohort));
    }
    let names = params.cohort.iter().map(|peer| &peer.client).chain([&params.run]);
    if let Some(name) = names.into_iter().find(|name| name.is_empty() || name.len() > MAX_NAME) {
        return Err(ParamsError::Name(name.chars().take(MAX_NAME).collect()));
    }
    if let Some(pair) = params.cohort.windows(2).find(|pair| pair[0].client >= pair[1].client) {
        return Err(ParamsError::Order(pair[1].client.clone()));
    }
    let mut seen = std::collections::HashSet::new();
    let identity = |peer: &Peer| {
        let key = VerifyingKey::from_bytes(&peer.identity).ok().filter(|key| !key.is_weak());
        key.filter(|_| seen.insert(peer.identity)).ok_or_else(|| ParamsError::Identity(peer.client.clone()))
    };
    let identities = params.cohort.iter().map(identity).collect::<Result<_, _>>()?;
    let holders = match params.graph {
        Graph::Complete => cohort,
        Graph::Sparse { degree } if degree >= 2 && degree % 2 == 0 && (degree as usize) < cohort => {
            degree as usize + 1
        }
        Graph::Sparse { degree } => return Err(ParamsError::Degree { degree, cohort }),
    };
    let Params { threshold, quorum, values, .. } = *params;
    if 2 * threshold as usize <= holders || threshold as usize > holders {
        return Err(ParamsError::Threshold { threshold, holders });
    }
    if 2 * quorum as usize <= cohort || quorum as usize > cohort || quorum < threshold {
        return Err(ParamsError::Quorum { quorum, cohort });
    }
    if !(1..=MAX_VALUES).contains(&values) {
        return Err(ParamsError::Values(values));
    }
    params.encoding.check(cohort)?;
    Ok(identities)
}
