//! What the kernel knows of a process, from `/proc`; nothing on systems without it.

use std::{fs, path::Path};

use prometheus::{
    Counter, Gauge, IntGauge, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// Linux reports CPU time in ticks of 1/100 s to user space on every architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory of a process in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Most that was ever resident.
    pub peak: u64,
}

/// Memory of a running process, this one where `pid` is absent.
pub fn memory(pid: Option<u32>) -> Option<Memory> {
    let status = fs::read_to_string(folder(pid).join("status")).ok()?;
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    Some(Memory { resident: kibibytes("VmRSS:")? * 1024, peak: kibibytes("VmHWM:")? * 1024 })
}

/// Bytes of memory that programs can still get without swapping: of the machine, or of the control group (a
/// container) that this process is confined to, where that has less.
pub fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    let number = |name: &str| {
        fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?.trim().parse::<u64>().ok()
    };
    // `max` is no number, and no limit. Group files are those of the container, whose root this process sees.
    let group = number("memory.max").zip(number("memory.current"));
    // Cached files that nobody uses are given up when memory is needed.
    let stat = fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let idle = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    let idle = idle.unwrap_or(0);
    let group = group.map(|(limit, used)| limit.saturating_sub(used.saturating_sub(idle)));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// Seconds of processor time a running process has used, this one where `pid` is absent.
pub fn cpu_seconds(pid: Option<u32>) -> Option<f64> {
    let stat = fs::read_to_string(folder(pid).join("stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / TICKS_PER_SECOND)
}

fn folder(pid: Option<u32>) -> std::path::PathBuf {
    Path::new("/proc").join(pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string()))
}

fn open_files() -> Option<i64> {
    i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

/// Metrics of this process under Prometheus' usual names.
pub(crate) struct ProcessMetrics {
    cpu: Counter,
    resident: IntGauge,
    peak: IntGauge,
    files: IntGauge,
    started: Gauge,
}

impl ProcessMetrics {
    pub fn new() -> prometheus::Result<Self> {
        let started = Gauge::new("process_start_time_seconds", "Start of the process since the Unix epoch.")?;
        started.set(crate::now_ms() as f64 / 1000.0);
        Ok(Self {
            cpu: Counter::with_opts(Opts::new(
                "process_cpu_seconds_total",
                "User and system CPU time spent.",
            ))?,
            resident: IntGauge::new("process_resident_memory_bytes", "Resident memory.")?,
            peak: IntGauge::new("process_peak_resident_memory_bytes", "Most memory that was ever resident.")?,
            files: IntGauge::new("process_open_fds", "Open file descriptors.")?,
            started,
        })
    }

    fn all(&self) -> [&dyn Collector; 5] {
        [&self.cpu, &self.resident, &self.peak, &self.files, &self.started]
    }

    fn read(&self) {
        if let Some(memory) = memory(None) {
            self.resident.set(i64::try_from(memory.resident).unwrap_or(i64::MAX));
            self.peak.set(i64::try_from(memory.peak).unwrap_or(i64::MAX));
        }
        if let Some(seconds) = cpu_seconds(None) {
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
        if let Some(files) = open_files() {
            self.files.set(files);
        }
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_memory_is_available() {
        assert!(available_memory().unwrap() > 1 << 20);
    }

    #[test]
    fn this_process_is_measured_and_a_missing_one_is_not() {
        let memory = memory(None).unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident / 2);
        assert!(cpu_seconds(None).unwrap() >= 0.0);
        assert_eq!(super::memory(Some(u32::MAX)), None);
        let families = ProcessMetrics::new().unwrap().collect();
        assert_eq!(families.len(), 5);
    }
}
