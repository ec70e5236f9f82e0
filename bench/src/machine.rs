//! Where and when it was measured.

use std::{collections::BTreeSet, fs, thread};

/// Processor, cores, memory.
pub fn words() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = processor.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags: BTreeSet<String> =
        field("flags").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let can: Vec<&str> =
        [("avx2", "AVX2"), ("avx512f", "AVX-512"), ("avx512_vnni", "VNNI"), ("sha_ni", "SHA")]
            .into_iter()
            .filter_map(|(flag, name)| flags.contains(flag).then_some(name))
            .collect();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let name = field("model name").unwrap_or_else(|| "unknown processor".into());
    format!(
        "{cores} cores of {name} ({}), {:.0} GiB of memory",
        can.join(", "),
        kib.unwrap_or(0.0) / f64::from(1 << 20)
    )
}

/// How this program was built, and those beside it.
pub fn build() -> String {
    if cfg!(debug_assertions) { "debug" } else { "release" }.into()
}

/// Today, in UTC.
pub fn day() -> String {
    let now = std::time::SystemTime::now();
    humantime::format_rfc3339_seconds(now).to_string().chars().take(10).collect()
}
