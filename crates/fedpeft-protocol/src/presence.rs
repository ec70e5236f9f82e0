//! Presence: what a client says of itself, renewed by heartbeat and forgotten when heartbeats stop.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClientId, bounds, secure::IdentityKey};

/// Value at key `<client>` of the client bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Presence {
    /// Protocol version of the sender.
    pub version: u32,
    /// The client.
    pub client: ClientId,
    /// The worker process that hosts it.
    #[serde(deserialize_with = "bounds::text::<256, _>")]
    pub worker: String,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What a client can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capabilities {
    /// It takes part in training.
    pub trains: bool,
    /// It evaluates on held-out examples.
    pub evaluates: bool,
    /// It is an edge: it aggregates the updates of clients of its own, and answers with their sum.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aggregates: bool,
    /// Its training (or held-out) examples; of an edge, those of its clients.
    pub examples: u64,
    /// Device it computes on: `cpu`, `cuda:0`.
    #[serde(deserialize_with = "bounds::text::<64, _>")]
    pub device: String,
    /// Memory of its machine that is free, in MiB, as of its last heartbeat.
    #[serde(default)]
    pub free_memory_mib: Option<u64>,
    /// What its operator says of it, for [`crate::run::Eligibility::labels`].
    #[serde(default, deserialize_with = "bounds::labels::<64, _>")]
    pub labels: BTreeMap<String, String>,
    /// By what other clients know it in secure aggregation; none where it takes no part in that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityKey>,
}
