//! Memory of processes, as the kernel counts it.

use std::fs;

/// The largest resident set of a process so far, in bytes; `None` once it is gone.
pub fn peak_rss(pid: u32) -> Option<u64> {
    parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read() {
        assert_eq!(parse("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 4 kB\n"), Some(2 << 20));
        assert_eq!(parse("Name:\tzombie\n"), None);
        assert!(peak_rss(std::process::id()).unwrap() > 1 << 16);
    }
}
