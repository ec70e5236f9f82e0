//! An artifact beyond 2 GB over a connection that breaks, in memory that does not grow with it.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use fedpeft_bus::{Bus, BusConfig};
use fedpeft_protocol::ModelName;
use fedpeft_registry::{Cache, Registry, pull, push_folder};
use fedpeft_testkit::{NatsServer, Proxy, Way};

use crate::registry::describe;

/// Beyond 2^31 bytes.
const LARGE: u64 = 2_200_000_000;
/// What a process may take: its program, windows of chunks, and what the allocator keeps.
const MOST_MEMORY: u64 = 96 << 20;
/// What the child does: `push` or `pull`, server, folder; for `pull` the manifest's digest as well.
const CHILD: &str = "FEDPEFT_TEST_LARGE";

/// Not a test: the process whose memory is measured.
#[tokio::test]
#[ignore = "run as a child process by another test"]
async fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let order: Vec<&str> = order.split_whitespace().collect();
    let config =
        BusConfig { server: order[1].into(), creds: None, tls: Default::default(), name: "test".into() };
    let bus = Bus::connect(&config).await.unwrap();
    let folder = Path::new(order[2]);
    match order[0] {
        "push" => {
            drop(push_folder(&bus, folder, &ModelName::new("large").unwrap(), |_, _, _| {}).await.unwrap());
        }
        _ => {
            let cache = Cache::new(folder);
            drop(pull(&bus, &order[3].parse().unwrap(), &cache, false, |_, _, _| {}).await.unwrap());
        }
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
    fs::write(folder.with_extension("peak"), (peak * 1024).to_string()).unwrap();
}

/// Runs [`child`]; its peak memory in bytes.
fn measured(order: &str, folder: &Path) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "large::child", "--ignored", "--nocapture"]).env(CHILD, order);
    assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{order}");
    fs::read_to_string(folder.with_extension("peak")).unwrap().parse().unwrap()
}

/// Mostly holes, with something else in every 16 MB.
fn sparse(path: &Path, size: u64) {
    let mut file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for at in (0..size - 8).step_by(16_000_000) {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&at.to_le_bytes()).unwrap();
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes about a minute and 7 GB of disk"]
async fn an_artifact_beyond_two_gigabytes_in_bounded_memory() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let _registry = Registry::start(&bus).await.unwrap();
    let proxy = Proxy::start(&server.url()).await;
    let folder = server.folder().join("artifacts");
    fs::create_dir(&folder).unwrap();
    sparse(&folder.join("backbone.bin"), LARGE);
    describe(&folder, "bias");

    proxy.cut_after(Way::Up, LARGE / 2);
    let started = Instant::now();
    let order = format!("push {} {}", proxy.url(), folder.display());
    let pushing = tokio::task::block_in_place(|| measured(&order, &folder));
    let pushed = (started.elapsed(), proxy.passed(Way::Up));

    let manifest = fedpeft_protocol::Digest::of(fs::read(folder.join("manifest.json")).unwrap());
    let cache = server.folder().join("cache");
    proxy.cut_after(Way::Down, LARGE / 2);
    let before = proxy.passed(Way::Down);
    let started = Instant::now();
    let order = format!("pull {} {} {manifest}", proxy.url(), cache.display());
    let pulling = tokio::task::block_in_place(|| measured(&order, &cache));
    let pulled = (started.elapsed(), proxy.passed(Way::Down) - before);

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let report = |what: &str, (time, passed): (std::time::Duration, u64), peak: u64| {
        let seconds = time.as_secs_f64();
        let extra = mib(passed.saturating_sub(LARGE));
        eprintln!(
            "{what}: {:.0} MiB in {seconds:.1} s ({:.0} MiB/s), {extra:.1} MiB of it headers and repetition, \
             peak memory {:.0} MiB",
            mib(LARGE),
            mib(LARGE) / seconds,
            mib(peak)
        );
    };
    report("push, connection cut half-way", pushed, pushing);
    report("pull, connection cut half-way", pulled, pulling);
    assert!(pushing < MOST_MEMORY && pulling < MOST_MEMORY, "{pushing} {pulling}");
    // Headers, one window, and the connection's buffers.
    let most = LARGE + LARGE / 150 + (8 << 20);
    assert!(pushed.1 < most && pulled.1 < most, "{pushed:?} {pulled:?}");
    let fetched = Cache::new(&cache).artifacts(&manifest).join("backbone.bin");
    assert_eq!(fs::metadata(fetched).unwrap().len(), LARGE);
    server.stop().await;
}
