//! The services, each behind a proxy of its own, and started again whenever they end.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use fedpeft_testkit::{Proxy, assets, locate_binary};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    sync::watch,
    task::JoinHandle,
};

use crate::clock::Clock;

/// Between the end of a process and its next start; doubled as long as it ends at once.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// A process that ran for this long did not end at once.
const SETTLED: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_secs(2);

/// One service, kept running. It is killed when dropped.
pub struct Process {
    pub name: String,
    pub proxy: Proxy,
    pub clock: Clock,
    /// Its artifacts, where it is a worker.
    pub cache: PathBuf,
    pub log: PathBuf,
    http: SocketAddr,
    life: watch::Receiver<Life>,
    keeper: JoinHandle<()>,
}

/// Where a process is in its lives.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    pid: Option<u32>,
    starts: u32,
}

impl Process {
    /// Starts `program` with `arguments` and keeps it running.
    pub async fn keep(
        name: String,
        program: &str,
        arguments: Vec<String>,
        broker: &str,
        folder: &Path,
    ) -> Self {
        let proxy = Proxy::start(broker).await;
        let clock = Clock::new(folder.join(format!("{name}.clock")));
        let (cache, log) = (folder.join(format!("{name}.cache")), folder.join(format!("{name}.log")));
        let http = free_address();
        let binary = locate_binary(program).unwrap_or_else(|error| panic!("{error}"));
        let command = {
            let (clock, cache, log, server) = (clock.clone(), cache.clone(), log.clone(), proxy.url());
            move || {
                let output = File::options().create(true).append(true).open(&log).unwrap();
                let mut command = Command::new(&binary);
                command.args(&arguments).args(["--server", &server, "--http", &http.to_string()]);
                command.env("FEDPEFT_LOG", "info,fedpeft_bus=debug,ort=warn");
                command.env("FEDPEFT_CACHE", &cache).env("FEDPEFT_ORT_LIB", assets().ort_lib().unwrap());
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).kill_on_drop(true);
                clock.preload(&mut command);
                command
            }
        };
        let (lives, life) = watch::channel(Life::default());
        let keeper = tokio::spawn(keep(command, lives));
        Self { name, proxy, clock, cache, log, http, life, keeper }
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.life.borrow().pid
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.life.borrow().starts
    }

    /// Kills it; nothing, if it is not running at this moment.
    pub fn kill(&self) {
        if let Some(pid) = self.pid() {
            signal(pid, Signal::KILL);
        }
    }

    /// Stops it for a while.
    pub async fn pause(&self, pause: Duration) {
        let Some(pid) = self.pid() else { return };
        signal(pid, Signal::STOP);
        tokio::time::sleep(pause).await;
        signal(pid, Signal::CONT);
    }

    /// Whether it says that it does its work.
    pub async fn is_ready(&self) -> bool {
        let page = tokio::time::timeout(PROBE, self.page("/readyz")).await;
        page.is_ok_and(|page| page.is_ok_and(|page| page.starts_with("HTTP/1.1 200")))
    }

    /// A page of its HTTP endpoints, with its head.
    pub async fn page(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.http).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        Ok(page)
    }

    /// The end of its log.
    pub fn last_words(&self, lines: usize) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The child goes with its keeper.
        self.keeper.abort();
    }
}

async fn keep(command: impl Fn() -> Command, lives: watch::Sender<Life>) {
    let mut delay = FIRST_DELAY;
    loop {
        let begun = tokio::time::Instant::now();
        let mut child = command().spawn().unwrap();
        lives.send_modify(|life| *life = Life { pid: child.id(), starts: life.starts + 1 });
        child.wait().await.unwrap();
        lives.send_modify(|life| life.pid = None);
        delay = if begun.elapsed() >= SETTLED { FIRST_DELAY } else { (delay * 2).min(LONGEST_DELAY) };
        tokio::time::sleep(delay).await;
    }
}

/// Sends a signal; a process that has just ended gets none.
pub fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal);
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
