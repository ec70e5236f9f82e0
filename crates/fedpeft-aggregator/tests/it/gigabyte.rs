//! Rounds whose adapters have a gigabyte each, in processes of their own whose memory is measured.
#![cfg(target_os = "linux")]

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use fedpeft_bus::{Bus, BusConfig, UploadKey};
use fedpeft_codec::encode_shared;
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION, ledger,
    round::{Outcome, Payload, Update},
    run::RunSpec,
};
use fedpeft_testkit::{NatsServer, Proxy, Way};

use crate::federation::{Federation, client, spec};

/// 2^28 values of 4 bytes.
const VALUES: u64 = 1 << 28;
const SIZE: u64 = VALUES * 4;
const ROUNDS: u32 = 2;
/// What a process may take beside what it cannot do without: its program, windows of chunks, and what the allocator
/// keeps.
const MOST_MEMORY: u64 = 128 << 20;
/// What the child does: server, name, a file for its peak memory.
const CHILD: &str = "FEDPEFT_TEST_CLIENT";

/// Not a test: a client that answers its tasks. What it trains is in memory, as it is after real training, and nothing
/// else of that size.
#[tokio::test]
#[ignore = "run as a child process by another test"]
async fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let order: Vec<&str> = order.split_whitespace().collect();
    let bus = connect(order[0]).await;
    let id = client(order[1]);
    let mut tasks = bus.tasks(&id).await.unwrap();
    for _ in 0..ROUNDS {
        let delivery = tasks.next().await.unwrap();
        let task = delivery.result.unwrap();
        let Payload::Blob { digest, size } = task.adapter else { panic!("{:?}", task.adapter.size()) };
        let file = tempfile::tempfile_in(std::env::current_dir().unwrap()).unwrap();
        bus.get_blob_into(&digest, size, file).await.unwrap();
        let seed = (task.round * 7) as f32 + id.as_str().len() as f32;
        let values: Vec<f32> = (0..size / 4).map(|at| (at % 1021) as f32 * 1e-3 + seed).collect();
        let key = UploadKey { run: &task.run, round: task.round, client: &id };
        let stored = bus.put_upload(key, encode_shared(Arc::new(values))).await.unwrap();
        let adapter = Payload::Blob { digest: stored.digest, size: stored.size };
        let outcome = Outcome::Trained {
            examples: 40,
            steps: 1,
            loss: 0.5,
            seconds: 1.0,
            adapter,
            personal: None,
            control: None,
            epsilon: None,
        };
        let (epoch, name) = (task.epoch, task.task.clone());
        let update = Update { version: PROTOCOL_VERSION, epoch, task: name, outcome, fetched: vec![] };
        bus.publish_update(&task.run, task.round, &id, &update).await.unwrap();
    }
    fs::write(order[2], peak(std::process::id()).to_string()).unwrap();
}

async fn connect(url: &str) -> Bus {
    Bus::connect(&BusConfig { server: url.into(), creds: None, tls: Default::default(), name: "test".into() })
        .await
        .unwrap()
}

/// Most memory that a process ever had resident, in bytes.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, 9 GB of disk and 7 GB of memory"]
async fn rounds_of_a_gigabyte_per_update_in_bounded_memory() {
    let mut federation = Federation::start(VALUES).await;
    let folder = federation.nats.folder().to_owned();
    let mut clients = Vec::new();
    let proxy = Proxy::start(&federation.nats.url()).await;
    for name in ["a", "bb"] {
        federation.join(name, 40).await;
        let report = folder.join(format!("{name}.peak"));
        // One of them over a connection that breaks.
        let url = if name == "a" { proxy.url() } else { federation.nats.url() };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "gigabyte::child", "--ignored", "--nocapture"]).current_dir(&folder);
        command.env(CHILD, format!("{url} {name} {}", report.display())).stdout(Stdio::null());
        clients.push((Process(command.spawn().unwrap()), report));
    }
    proxy.cut_after(Way::Up, SIZE / 2);
    let spool = folder.join("spool");
    fs::create_dir(&spool).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fedpeft-aggregator"));
    command.args(["--server", &federation.nats.url(), "--http", "127.0.0.1:0", "--spool"]).arg(&spool);
    let aggregator = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let served = async {
        while federation
            .ask::<fedpeft_protocol::run::RunView>("runs.get", "r")
            .await
            .is_err_and(|e| matches!(e, fedpeft_bus::BusError::NoService { .. }))
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    served.await;

    let started = Instant::now();
    let deadline = RunSpec { round_deadline_seconds: 3600.0, ..spec(ROUNDS, 2) };
    Box::pin(created(&federation.nats, deadline)).await;
    let records = federation.bus.runs().await.unwrap();
    let view = loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (record, _) = records.get("r").await.unwrap().unwrap();
        if record.status.is_final() {
            break federation.view("r").await;
        }
        assert!(started.elapsed() < Duration::from_secs(1800), "{record:?}");
    };
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(ledger::check(&view).unwrap().updates, u64::from(ROUNDS) * 2, "{:?}", view.record.status);
    assert_eq!(federation.uploads().await, 0);
    let aggregating = peak(aggregator.0.id());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    eprintln!("{ROUNDS} rounds of 2 updates of {:.0} MiB in {seconds:.0} s", mib(SIZE));
    eprintln!("aggregator: peak {:.0} MiB, of which the sum {:.0} MiB", mib(aggregating), mib(4 * SIZE));
    assert!(aggregating < 4 * SIZE + MOST_MEMORY);
    for (mut process, report) in clients {
        process.0.wait().unwrap();
        let peak: u64 = fs::read_to_string(&report).unwrap().parse().unwrap();
        eprintln!("client: peak {:.0} MiB, of which its adapter {:.0} MiB", mib(peak), mib(SIZE));
        assert!(peak < SIZE + MOST_MEMORY);
    }
    eprintln!("sent by the client whose connection broke: {:.0} MiB", mib(proxy.passed(Way::Up)));
    let sent = u64::from(ROUNDS) * SIZE;
    assert!(proxy.passed(Way::Up) < sent + sent / 150 + (8 << 20));
    // The global adapter is the mean of two constants plus the pattern of both.
    assert_ne!(view.record.adapter, Digest::of(b""));
}

/// Creates the run with more patience than a request has: the initial adapter is a gigabyte, too.
async fn created(nats: &NatsServer, spec: RunSpec) {
    let bus = nats.bus().await;
    let request = fedpeft_protocol::api::CreateRun { run: Some(crate::federation::run_id("r")), spec };
    // The answer may come too late; the record tells.
    let _ = bus.request::<_, fedpeft_protocol::run::RunRecord>("runs.create", &request).await;
    let records = bus.runs().await.unwrap();
    for _ in 0..600 {
        if records.get("r").await.unwrap().is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the run is not created");
}
