//! Which of the present clients may be sampled.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ClientId,
    presence::Presence,
    validate::{InvalidSpec, check},
};

/// Most clients named: ten thousand names of full length fit a message.
const MAX_CLIENTS: usize = 10_000;
/// Most devices and labels.
const MAX_RULES: usize = 64;
/// Most bytes of a device or of a label's name or value.
const MAX_TEXT: usize = 128;

/// Rules that a client must meet to be sampled. By default every present client that trains is eligible.
///
/// Clients describe themselves, so these rules spare honest clients tasks they could not do; they are no defence. An edge
/// must be among `clients`, where that names any, and holds its own clients to the other rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Eligibility {
    /// Fewest training examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_examples: Option<u64>,
    /// Most training examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_examples: Option<u64>,
    /// Least free memory of the client's machine, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free_memory_mib: Option<u64>,
    /// Devices: `cpu`, `cuda`, or one of them with its number, as in `cuda:0`. None means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Labels that a client must carry, each with this value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Clients by name. None means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<ClientId>,
}

impl Eligibility {
    /// Whether everybody is eligible.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks that a run's record, which holds these rules, stays small.
    pub(crate) fn validate(&self) -> Result<(), InvalidSpec> {
        let texts = self.devices.iter().chain(self.labels.iter().flat_map(|(name, value)| [name, value]));
        let longest = texts.map(String::len).max().unwrap_or(0);
        for (field, found, most) in [
            ("eligibility.clients", self.clients.len(), MAX_CLIENTS),
            ("eligibility.devices", self.devices.len(), MAX_RULES),
            ("eligibility.labels", self.labels.len(), MAX_RULES),
            ("eligibility", longest, MAX_TEXT),
        ] {
            check(field, found <= most, || {
                format!("has {found} entries or bytes in one: {most} are the most")
            })?;
        }
        Ok(())
    }

    /// Whether a client may be sampled, or the first rule that it does not meet.
    pub fn check(&self, presence: &Presence) -> Result<(), String> {
        let capabilities = &presence.capabilities;
        if !capabilities.trains {
            return Err("it does not train".into());
        }
        if !self.clients.is_empty() && !self.clients.contains(&presence.client) {
            return Err("it is not among eligibility.clients".into());
        }
        if capabilities.aggregates {
            // The rest is for those who train, and goes on to them.
            return Ok(());
        }
        let examples = capabilities.examples;
        if let Some(least) = self.min_examples.filter(|least| examples < *least) {
            return Err(format!("it has {examples} examples, eligibility.min_examples is {least}"));
        }
        if let Some(most) = self.max_examples.filter(|most| examples > *most) {
            return Err(format!("it has {examples} examples, eligibility.max_examples is {most}"));
        }
        if let Some(least) = self.min_free_memory_mib {
            match capabilities.free_memory_mib {
                Some(free) if free >= least => {}
                Some(free) => {
                    return Err(format!(
                        "it has {free} MiB of free memory, eligibility.min_free_memory_mib is {least}"
                    ));
                }
                None => return Err("it does not say how much memory is free".into()),
            }
        }
        if !self.devices.is_empty() && !self.devices.iter().any(|device| is_of(&capabilities.device, device))
        {
            return Err(format!(
                "it computes on {}, which eligibility.devices does not list",
                capabilities.device
            ));
        }
        for (label, value) in &self.labels {
            if capabilities.labels.get(label) != Some(value) {
                return Err(format!("it has no label {label}={value}"));
            }
        }
        Ok(())
    }
}

/// Whether `device` is `kind`, or one of that kind.
fn is_of(device: &str, kind: &str) -> bool {
    device == kind || device.split_once(':').is_some_and(|(of, _)| of == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PROTOCOL_VERSION, presence::Capabilities};

    fn presence() -> Presence {
        Presence {
            version: PROTOCOL_VERSION,
            client: ClientId::new("a").unwrap(),
            worker: "w".into(),
            capabilities: Capabilities {
                trains: true,
                evaluates: false,
                aggregates: false,
                examples: 100,
                device: "cuda:1".into(),
                free_memory_mib: Some(2048),
                labels: BTreeMap::from([("site".to_owned(), "eu".to_owned())]),
                identity: None,
            },
        }
    }

    #[test]
    fn each_rule_refuses_by_its_name() {
        type Case = (&'static str, fn(&mut Eligibility));
        let cases: [Case; 6] = [
            ("eligibility.min_examples", |rules| rules.min_examples = Some(101)),
            ("eligibility.max_examples", |rules| rules.max_examples = Some(99)),
            ("eligibility.min_free_memory_mib", |rules| rules.min_free_memory_mib = Some(4096)),
            ("eligibility.devices", |rules| rules.devices = vec!["cpu".into(), "cuda:0".into()]),
            ("label site=us", |rules| drop(rules.labels.insert("site".into(), "us".into()))),
            ("eligibility.clients", |rules| rules.clients = vec![ClientId::new("b").unwrap()]),
        ];
        for (name, add) in cases {
            let mut rules = Eligibility::default();
            rules.check(&presence()).unwrap();
            add(&mut rules);
            let reason = rules.check(&presence()).unwrap_err();
            assert!(reason.contains(name), "{reason}");
        }
    }

    #[test]
    fn who_meets_all_rules_is_eligible() {
        let rules = Eligibility {
            min_examples: Some(100),
            max_examples: Some(100),
            min_free_memory_mib: Some(2048),
            devices: vec!["cuda".into()],
            labels: BTreeMap::from([("site".to_owned(), "eu".to_owned())]),
            clients: vec![ClientId::new("a").unwrap()],
        };
        rules.check(&presence()).unwrap();
        let mut evaluator = presence();
        evaluator.capabilities.trains = false;
        assert!(Eligibility::default().check(&evaluator).is_err());
    }

    #[test]
    fn rules_that_are_too_long_are_named() {
        Eligibility::default().validate().unwrap();
        let texts = |count: usize| (0..count).map(|i| i.to_string());
        let clients = texts(MAX_CLIENTS + 1).map(|name| ClientId::new(name).unwrap()).collect();
        let labels = texts(MAX_RULES + 1).map(|name| (name, String::new())).collect();
        for (field, rules) in [
            ("eligibility.clients", Eligibility { clients, ..Default::default() }),
            ("eligibility.labels", Eligibility { labels, ..Default::default() }),
            (
                "eligibility.devices",
                Eligibility { devices: texts(MAX_RULES + 1).collect(), ..Default::default() },
            ),
            ("eligibility", Eligibility { devices: vec!["x".repeat(MAX_TEXT + 1)], ..Default::default() }),
        ] {
            assert_eq!(rules.validate().unwrap_err().field, field);
        }
    }
}
