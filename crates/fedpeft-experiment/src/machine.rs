//! The machine that trials ran on.

use std::{fs, num::NonZero, thread};

use serde::{Deserialize, Serialize};

/// Facts that durations depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Cores that may be used.
    pub cores: usize,
    /// What the processor calls itself, where the system says.
    pub processor: Option<String>,
    /// System and architecture.
    pub system: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cores: thread::available_parallelism().map_or(1, NonZero::get),
            processor: model_name(&cpuinfo),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }

    /// `2 cores (AMD EPYC), linux x86_64`
    pub fn describe(&self) -> String {
        let processor = self.processor.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
        let plural = if self.cores == 1 { "" } else { "s" };
        format!("{} core{plural}{processor}, {}", self.cores, self.system)
    }
}

fn model_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        assert_eq!(model_name("x: 1\nmodel name\t: Fast CPU\n").as_deref(), Some("Fast CPU"));
        assert_eq!(model_name(""), None);
        let machine = Machine { cores: 2, processor: Some("P".into()), system: "linux x86_64".into() };
        assert_eq!(machine.describe(), "2 cores (P), linux x86_64");
        assert!(Machine::this().cores > 0);
    }
}
