//! Who is hosted, and with which data.

use std::{collections::BTreeMap, iter};

use anyhow::{Context as _, bail};
use fedpeft_data::{ClientData, Federation};
use fedpeft_protocol::{ClientId, presence::Capabilities};

use crate::{Config, Split, alone::Alone};

/// What a hosted client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Trains,
    Evaluates,
}

/// A hosted client.
#[derive(Debug, Clone)]
pub(crate) struct Hosted {
    pub id: ClientId,
    pub role: Role,
    pub data: ClientData,
    /// What it holds back from training, to evaluate its own model on.
    pub held_back: Option<ClientData>,
    /// Most LoRA rank that it trains and sends, if there is a limit.
    pub lora_rank: Option<u32>,
    /// Whether no other process speaks for it.
    pub alone: Alone,
}

impl Hosted {
    pub fn capabilities(&self, device: &str, labels: &BTreeMap<String, String>) -> Capabilities {
        Capabilities {
            trains: self.role == Role::Trains,
            evaluates: self.role == Role::Evaluates,
            aggregates: false,
            examples: self.data.len() as u64,
            device: device.to_owned(),
            free_memory_mib: None,
            labels: labels.clone(),
            identity: None,
        }
    }
}

/// Every client of `config`, with its part of `federation`.
pub(crate) fn roster(config: &Config, federation: &Federation) -> anyhow::Result<Vec<Hosted>> {
    let numbered = (0..config.clients)
        .map(|offset| format!("{}{:03}", config.clients_prefix, config.first.saturating_add(offset)));
    let mut hosted = Vec::new();
    for (offset, name) in config.client.iter().cloned().chain(numbered).enumerate() {
        let part = config.first as usize + offset;
        let data = federation.client(part).with_context(|| {
            let parts = federation.clients();
            format!("client {name} would hold part {part} of the data, which has parts 0 to {}", parts - 1)
        })?;
        hosted.push(Hosted {
            id: ClientId::new(name)?,
            role: Role::Trains,
            data,
            held_back: federation.client_holdout(part),
            lora_rank: config.lora_rank.iter().cycle().nth(part % config.lora_rank.len().max(1)).copied(),
            alone: Alone::default(),
        });
    }
    if let Some(name) = &config.evaluate {
        let data = match config.evaluate_on {
            Split::HeldOut => federation.held_out(),
            Split::Validation => federation.validation(),
        };
        if data.is_empty() {
            bail!("evaluator {name} would have no examples: set validation_examples in the data description");
        }
        let id = ClientId::new(name)?;
        let (role, alone) = (Role::Evaluates, Alone::default());
        hosted.push(Hosted { id, role, data, held_back: None, lora_rank: None, alone });
    }
    let mut names: Vec<&ClientId> = hosted.iter().map(|client| &client.id).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("client {} is named twice", twice[0]);
    }
    if config.lora_rank.contains(&0) {
        bail!("lora_rank must be at least 1");
    }
    if hosted.is_empty() {
        bail!("there is no client to host: give --clients N, --client NAME or --evaluate");
    }
    // Of the dataset, what the others have is forgotten.
    ClientData::hold_only(
        hosted.iter_mut().flat_map(|client| iter::once(&mut client.data).chain(&mut client.held_back)),
    );
    Ok(hosted)
}
