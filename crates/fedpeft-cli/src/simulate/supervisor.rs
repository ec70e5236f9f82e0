//! Child processes: each has a name, a log file and a policy for when it ends.
//!
//! A child that ends with exit code 1 or 2 has said that it cannot run, and why: starting it again would not
//! help. Any other end came from outside (a signal, an operator) or from a defect, and its policy decides.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::memory;

/// A program to run.
#[derive(Debug, Clone)]
pub struct Program {
    /// Name in messages, reports and of the log file.
    pub name: String,
    /// The executable.
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// What to do when it ends by itself.
    pub policy: Policy,
}

/// What to do when a child ends that did not say it cannot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Start it again: its state is durable.
    Restart,
    /// Go on without it, as a federation goes on without a party that left.
    LetGo,
}

/// Something that happened to a child.
#[derive(Debug)]
pub enum Incident {
    /// It cannot run, or not for long.
    Died {
        /// One line: who, how, its last words, where its log is.
        report: String,
    },
    /// It ended and was started again.
    Restarted {
        /// The child.
        name: String,
        /// How it ended.
        end: String,
    },
    /// It ended, and the simulation goes on without it.
    Lost {
        /// The child.
        name: String,
        /// How it ended.
        end: String,
    },
}

/// File of the store that lists the running children.
pub const PROCESSES: &str = "processes.json";
/// Restarts without a quiet minute between them after which a child is given up.
const MAX_RESTARTS: u32 = 8;
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// A child that ran this long starts over with its restarts.
const QUIET: Duration = Duration::from_secs(60);
/// Time to drain after a request to stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);
const SAMPLE: Duration = Duration::from_millis(500);

/// Children of this process. Dropping it kills them.
#[derive(Debug)]
pub struct Supervisor {
    folder: PathBuf,
    incidents: mpsc::UnboundedSender<Incident>,
    children: Vec<Keeper>,
    processes: Arc<Processes>,
    sampler: JoinHandle<()>,
}

#[derive(Debug)]
struct Keeper {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// A supervisor that keeps logs and the list of processes in `folder`, and what to read incidents from.
    pub fn new(folder: &Path) -> Result<(Self, mpsc::UnboundedReceiver<Incident>)> {
        let logs = folder.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("{} cannot be made", logs.display()))?;
        let (incidents, receiver) = mpsc::unbounded_channel();
        let processes = Arc::new(Processes::new(folder.join(PROCESSES)));
        let sampled = processes.clone();
        let sampler = tokio::spawn(async move {
            let mut tick = tokio::time::interval(SAMPLE);
            loop {
                tick.tick().await;
                sampled.sample();
            }
        });
        let folder = folder.to_owned();
        Ok((Self { folder, incidents, children: Vec::new(), processes, sampler }, receiver))
    }

    /// Starts a child and keeps it as its policy says.
    pub fn start(&mut self, program: Program) -> Result<()> {
        let log = self.log(&program.name);
        let child = spawn(&program, &log)?;
        self.processes.begun(&program, child.id(), &log);
        let (stop, stopped) = oneshot::channel();
        let keeping = Keeping {
            program,
            log,
            incidents: self.incidents.clone(),
            processes: self.processes.clone(),
            restarts: 0,
        };
        self.children.push(Keeper { stop, task: tokio::spawn(keeping.keep(child, stopped)) });
        Ok(())
    }

    /// The log file of a child.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{name}.log"))
    }

    /// The largest resident set of every process so far.
    pub fn peak_rss(&self) -> BTreeMap<String, u64> {
        self.processes.sample();
        self.processes.peaks()
    }

    /// Asks all children to end, the last started first, and kills those that do not.
    pub async fn stop(mut self) -> BTreeMap<String, u64> {
        let peaks = self.peak_rss();
        while let Some(Keeper { stop, mut task }) = self.children.pop() {
            // A keeper that let its child go has ended already and hears nothing.
            let _ = stop.send(());
            if tokio::time::timeout(2 * STOP_WITHIN, &mut task).await.is_err() {
                task.abort();
            }
        }
        self.processes.clear();
        peaks
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.sampler.abort();
        // The children were spawned to be killed when dropped, and their keepers hold them.
        self.children.iter().for_each(|child| child.task.abort());
    }
}

/// One child and what to do with it.
struct Keeping {
    program: Program,
    log: PathBuf,
    incidents: mpsc::UnboundedSender<Incident>,
    processes: Arc<Processes>,
    restarts: u32,
}

impl Keeping {
    async fn keep(mut self, mut child: Child, mut stopped: oneshot::Receiver<()>) {
        loop {
            let started = Instant::now();
            let status = tokio::select! {
                status = child.wait() => status,
                _ = &mut stopped => return stop(child).await,
            };
            self.processes.ended(&self.program.name);
            let end = describe(&status);
            let incident = match self.verdict(&status, started) {
                Verdict::GiveUp => Incident::Died { report: self.obituary(&end) },
                Verdict::LetGo => Incident::Lost { name: self.program.name.clone(), end },
                Verdict::Restart(delay) => {
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        _ = &mut stopped => return,
                    }
                    match spawn(&self.program, &self.log) {
                        Ok(next) => {
                            self.processes.begun(&self.program, next.id(), &self.log);
                            child = next;
                            let name = self.program.name.clone();
                            // Nobody listens when the simulation is over; then `stopped` follows.
                            let _ = self.incidents.send(Incident::Restarted { name, end });
                            continue;
                        }
                        Err(error) => Incident::Died { report: crate::output::one_line(&error) },
                    }
                }
            };
            let _ = self.incidents.send(incident);
            return;
        }
    }

    fn verdict(&mut self, status: &std::io::Result<ExitStatus>, started: Instant) -> Verdict {
        let code = status.as_ref().ok().and_then(ExitStatus::code);
        if matches!(code, Some(1 | 2)) {
            return Verdict::GiveUp;
        }
        if self.program.policy == Policy::LetGo {
            return Verdict::LetGo;
        }
        if started.elapsed() >= QUIET {
            self.restarts = 0;
        }
        self.restarts += 1;
        if self.restarts > MAX_RESTARTS {
            return Verdict::GiveUp;
        }
        Verdict::Restart((FIRST_DELAY * 2u32.pow(self.restarts - 1)).min(LONGEST_DELAY))
    }

    fn obituary(&self, end: &str) -> String {
        let name = &self.program.name;
        let words = last_words(&self.log).map_or_else(String::new, |words| format!(": {words}"));
        format!("{name} ended ({end}){words}; its log is {}", self.log.display())
    }
}

enum Verdict {
    GiveUp,
    LetGo,
    Restart(Duration),
}

fn spawn(program: &Program, log: &Path) -> Result<Child> {
    let context = || format!("the log {} cannot be written", log.display());
    let output = File::options().create(true).append(true).open(log).with_context(context)?;
    let errors = output.try_clone().with_context(context)?;
    Command::new(&program.binary)
        .args(&program.args)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .env_remove("FEDPEFT_CONFIG")
        .env_remove("FEDPEFT_HTTP")
        .env_remove("FEDPEFT_CREDS")
        // What one thread has freed another uses, where the system's allocator would keep it for each. A worker that has
        // fetched a backbone takes 17 MiB less.
        .env("MALLOC_ARENA_MAX", std::env::var_os("MALLOC_ARENA_MAX").unwrap_or_else(|| "1".into()))
        .kill_on_drop(true)
        // Ctrl-C in a terminal goes to its whole process group; the children are stopped in order instead.
        .process_group(0)
        .spawn()
        .map_err(|error| anyhow!("{} ({}) cannot be run: {error}", program.name, program.binary.display()))
}

async fn stop(mut child: Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)) {
        // It may have ended by itself just now; `wait` below tells.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn describe(status: &std::io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match status {
        Err(error) => error.to_string(),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        },
    }
}

/// The last line of a log that says something, without the word every error begins with.
fn last_words(log: &Path) -> Option<String> {
    const TAIL: u64 = 4096;
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?.trim();
    Some(line.strip_prefix("error: ").unwrap_or(line).to_owned())
}

/// The processes that run now, mirrored into a file for people, and the memory they took.
#[derive(Debug)]
struct Processes {
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<String, Process>,
    peaks: BTreeMap<String, u64>,
}

/// A running child.
#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// The executable.
    pub program: PathBuf,
    /// Its log file.
    pub log: PathBuf,
}

impl Process {
    /// Whether the process runs and is not another one that got the same id later.
    pub fn is_alive(&self) -> bool {
        let own = fs::canonicalize(&self.program).unwrap_or_else(|_| self.program.clone());
        fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok_and(|program| program == own)
    }
}

impl Processes {
    fn new(file: PathBuf) -> Self {
        Self { file, state: Mutex::default() }
    }

    fn begun(&self, program: &Program, pid: Option<u32>, log: &Path) {
        let Some(pid) = pid else { return };
        let name = program.name.clone();
        let process =
            Process { name: name.clone(), pid, program: program.binary.clone(), log: log.to_owned() };
        self.change(|state| {
            state.running.insert(name, process);
        });
    }

    fn ended(&self, name: &str) {
        self.change(|state| {
            state.running.remove(name);
        });
    }

    fn clear(&self) {
        self.change(|state| state.running.clear());
    }

    fn sample(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { running, peaks } = &mut *state;
        let own = ("fedpeft", std::process::id());
        let all = running.values().map(|process| (process.name.as_str(), process.pid)).chain([own]);
        for (name, pid) in all {
            if let Some(peak) = memory::peak_rss(pid) {
                let highest = peaks.entry(name.to_owned()).or_default();
                *highest = peak.max(*highest);
            }
        }
    }

    fn peaks(&self) -> BTreeMap<String, u64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).peaks.clone()
    }

    fn change(&self, edit: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        edit(&mut state);
        let list: Vec<&Process> = state.running.values().collect();
        // The list only informs; a full disk must not end the run.
        if let Ok(text) = serde_json::to_string_pretty(&list) {
            let _ = fs::write(&self.file, text + "\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str, policy: Policy) -> Program {
        Program {
            name: name.into(),
            binary: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            policy,
        }
    }

    async fn first_incident(program: Program) -> Incident {
        let folder = tempfile::tempdir().unwrap();
        let (mut supervisor, mut incidents) = Supervisor::new(folder.path()).unwrap();
        supervisor.start(program).unwrap();
        let incident = incidents.recv().await.unwrap();
        supervisor.stop().await;
        incident
    }

    #[tokio::test]
    async fn a_child_that_cannot_run_is_reported_with_its_last_words() {
        let program = shell("registry", "echo 'error: no broker' >&2; exit 1", Policy::Restart);
        let Incident::Died { report } = first_incident(program).await else { panic!("not dead") };
        assert!(report.starts_with("registry ended (exit code 1): no broker; its log is "), "{report}");
    }

    #[tokio::test]
    async fn a_killed_child_is_started_again_or_let_go() {
        let end = |policy| first_incident(shell("x", "kill -9 $$", policy));
        assert!(
            matches!(end(Policy::Restart).await, Incident::Restarted { name, end } if name == "x" && end == "signal 9")
        );
        assert!(matches!(end(Policy::LetGo).await, Incident::Lost { name, .. } if name == "x"));
    }

    #[tokio::test]
    async fn children_are_stopped_in_order_and_listed_while_they_run() {
        let folder = tempfile::tempdir().unwrap();
        let (mut supervisor, _incidents) = Supervisor::new(folder.path()).unwrap();
        let script = |word: &str| {
            format!(
                "trap 'echo {word} >> {}/order; exit 0' TERM; echo up; while :; do sleep 0.05; done",
                folder.path().display()
            )
        };
        for word in ["first", "second"] {
            supervisor.start(shell(word, &script(word), Policy::Restart)).unwrap();
            while fs::read_to_string(supervisor.log(word)).unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let list = fs::read_to_string(folder.path().join("processes.json")).unwrap();
        assert!(list.contains("first") && list.contains("second"));
        let peaks = supervisor.stop().await;
        assert!(peaks["first"] > 0 && peaks["fedpeft"] > 0);
        assert_eq!(fs::read_to_string(folder.path().join("order")).unwrap(), "second\nfirst\n");
        assert_eq!(fs::read_to_string(folder.path().join("processes.json")).unwrap(), "[]\n");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (mut supervisor, _incidents) = Supervisor::new(folder.path()).unwrap();
        let mut program = shell("worker-1", "", Policy::LetGo);
        program.binary = folder.path().join("nothing");
        let error = supervisor.start(program).unwrap_err().to_string();
        assert!(error.starts_with("worker-1 (") && error.contains("nothing"), "{error}");
    }
}
