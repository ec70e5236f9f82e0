//! What the tests share: a small federation, and processes around it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use fedpeft_testkit::{assets, locate_binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(400);

/// A small federation on the real backbone: 28 pixels, four clients with 24 images each.
pub const CONFIG: &str = r#"
[run]
rounds = 3
cohort = 4
seed = 7
round_deadline_seconds = 300.0

[run.training]
local_epochs = 2
batch_size = 8
learning_rate = 2e-3

[model]
name = "vit"
onnx = "@assets/models/dinov2-vits14.onnx"
output = "/backbone/layernorm/Add_1_output_0"
input_size = 28
method = "bias"

[data]
clients = 4
samples_per_client = 24
min_examples = 4
eval_examples = 40
seed = 7

[simulate]
workers = 2
threads = 1
device = "cpu"
"#;

/// A folder with `run.toml` in it.
pub struct Workspace {
    folder: TempDir,
}

impl Workspace {
    /// The small federation.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("run.toml"), CONFIG).unwrap();
        Self { folder }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `fedpeft simulate` of the small federation, with a report in `report.json`.
    pub fn simulate(&self, options: &[&str]) -> Command {
        let mut command = fedpeft();
        command.arg("simulate").arg("--config").arg(self.path("run.toml"));
        command.arg("--json").arg(self.path("report.json")).arg("--cache").arg(artifact_cache());
        command.args(options);
        command
    }

    /// The report.
    pub fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("report.json")).unwrap()).unwrap()
    }
}

/// Artifacts are built once for all tests.
pub fn artifact_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("artifacts")
}

/// The command line, told where the assets are.
pub fn fedpeft() -> Command {
    program("fedpeft")
}

/// A program of this workspace, told where the assets are.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(locate_binary(name).unwrap_or_else(|error| panic!("{error}")));
    command.env("FEDPEFT_ASSETS", assets().cache());
    command.env("FEDPEFT_ORT_LIB", assets().ort_lib().unwrap_or_else(|error| panic!("{error}")));
    command.env("FEDPEFT_NATS_SERVER", assets().nats_server().unwrap_or_else(|error| panic!("{error}")));
    command
}

/// Runs a command that must succeed, and returns its standard output.
pub fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Both outputs of a command.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A running command. It is killed when dropped.
pub struct Running(Child);

impl Running {
    /// Starts it with its output in `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self(command.spawn().unwrap())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it ends; returns its exit code.
    pub fn wait(mut self) -> Option<i32> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < give_up, "it does not end");
            nap();
        }
    }

    /// Kills it as a crash would.
    pub fn crash(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal.
pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// The process ids of a simulation's children by name, once the store lists `name`.
pub fn child(store: &Path, name: &str) -> u32 {
    until(|| {
        let list: Value = serde_json::from_slice(&fs::read(store.join("processes.json")).ok()?).ok()?;
        let process = list.as_array()?.iter().find(|process| process["name"] == name)?;
        Some(u32::try_from(process["pid"].as_u64()?).unwrap())
    })
}

/// Whether a process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// Waits for something to become true.
pub fn until<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < give_up, "waited in vain");
        nap();
    }
}

fn nap() {
    std::thread::park_timeout(Duration::from_millis(20));
}
