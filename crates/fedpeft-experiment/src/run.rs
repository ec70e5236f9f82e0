//! Running the trials that are missing, some at a time, each in a process of its own.

use std::{fs::File, future::Future, io::Write as _, process::Stdio, time::Duration};

use futures::{StreamExt as _, stream};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
};

use crate::{
    ExperimentError,
    folder::{Folder, Place, Status, write_whole},
    trial::Trial,
};

/// Time for a simulation to end its own processes after a request to stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// How a trial is run.
pub trait Launch: Sync {
    /// The command that runs the trial of [`Place::config`] with its state in [`Place::store`] and puts its report
    /// into [`Place::report`].
    fn command(&self, trial: &Trial, place: &Place) -> Command;

    /// The round that a line of its standard output says is done.
    fn round(&self, line: &str) -> Option<u32>;
}

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A trial began, or went on.
    Begun(&'a Trial),
    /// So many of its rounds are done.
    Round(&'a Trial, u32),
    /// It ended; one that was stopped is [`Status::Begun`].
    Ended(&'a Trial, &'a Status),
}

/// Runs `trials`, at most `jobs` at a time, until all ended or `stop` is. A trial that fails stops no other one.
///
/// # Errors
/// The folder cannot be written; trials that run are stopped first.
pub async fn run(
    folder: &Folder,
    trials: &[Trial],
    jobs: usize,
    launch: &impl Launch,
    stop: impl Future<Output = ()>,
    mut tell: impl FnMut(Event<'_>),
) -> Result<(), ExperimentError> {
    let (halt, halted) = watch::channel(false);
    let (told, mut heard) = mpsc::unbounded_channel::<(&Trial, Option<u32>)>();
    let attempt = |trial| {
        let attempt =
            Attempt { trial, place: folder.place(&trial.id), halted: halted.clone(), told: told.clone() };
        async move { (trial, attempt.run(launch).await) }
    };
    let mut ended = stream::iter(trials).map(attempt).buffer_unordered(jobs.max(1));
    let mut first_error = None;
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            Some(news) = heard.recv() => tell(event(news)),
            next = ended.next() => {
                // What a trial said comes before how it ended.
                while let Ok(news) = heard.try_recv() {
                    tell(event(news));
                }
                match next {
                    None => break,
                    Some((trial, Ok(Some(status)))) => tell(Event::Ended(trial, &status)),
                    Some((_, Ok(None))) => {}
                    Some((_, Err(error))) => {
                        let _ = halt.send(true);
                        first_error.get_or_insert(error);
                    }
                }
            }
            () = &mut stop, if !*halt.borrow() => {
                let _ = halt.send(true);
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn event((trial, round): (&Trial, Option<u32>)) -> Event<'_> {
    round.map_or(Event::Begun(trial), |round| Event::Round(trial, round))
}

struct Attempt<'a> {
    trial: &'a Trial,
    place: Place,
    halted: watch::Receiver<bool>,
    told: mpsc::UnboundedSender<(&'a Trial, Option<u32>)>,
}

impl Attempt<'_> {
    /// How the trial ended; nothing where it never began.
    async fn run(self, launch: &impl Launch) -> Result<Option<Status>, ExperimentError> {
        if *self.halted.borrow() {
            return Ok(None);
        }
        self.place.begin(self.trial)?;
        // An experiment that was killed may have left a simulation that then completed.
        if self.place.report().is_file()
            && let finished @ Status::Finished(_) = self.place.settle(Ok(()))?
        {
            return Ok(Some(finished));
        }
        self.place.begin(self.trial)?;
        let _ = self.told.send((self.trial, None));
        let mut child = match self.spawn(launch) {
            Ok(child) => child,
            Err(reason) => return self.place.settle(Err(reason)).map(Some),
        };
        let pid = child.id().map(|pid| pid.to_string()).unwrap_or_default();
        write_whole(&self.place.pid(), &pid)?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let reading = async {
            let rounds = self.read(output, |line| {
                if let Some(round) = launch.round(line) {
                    let _ = self.told.send((self.trial, Some(round)));
                }
            });
            let mut last = None;
            let words = self.read(errors, |line| last = Some(line.to_owned()));
            tokio::join!(rounds, words);
            last
        };
        let mut halted = self.halted.clone();
        let last = tokio::select! {
            last = reading => last,
            _ = halted.wait_for(|halted| *halted) => {
                stop(&mut child).await;
                return Ok(Some(Status::Begun));
            }
        };
        let status = child.wait().await;
        let ended = match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let words = last.unwrap_or_else(|| "it said nothing".to_owned());
                let words = words.strip_prefix("error: ").unwrap_or(&words);
                Err(format!("{words} ({status})"))
            }
            Err(error) => Err(error.to_string()),
        };
        self.place.settle(ended).map(Some)
    }

    fn spawn(&self, launch: &impl Launch) -> Result<Child, String> {
        let mut command = launch.command(self.trial, &self.place);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C in a terminal goes to its whole process group; simulations are stopped in order instead.
        command.process_group(0).kill_on_drop(true);
        command.spawn().map_err(|error| {
            format!("{} cannot be run: {error}", command.as_std().get_program().to_string_lossy())
        })
    }

    /// Reads lines to their end and keeps them in the log.
    async fn read(&self, from: Option<impl AsyncRead + Unpin>, mut each: impl FnMut(&str)) {
        let Some(from) = from else { return };
        let mut log = File::options().create(true).append(true).open(self.place.log()).ok();
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // The log only informs; a full disk must not end the trial.
            if let Some(log) = &mut log {
                let _ = writeln!(log, "{line}");
            }
            each(&line);
        }
    }
}

async fn stop(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) {
        // It may have ended by itself just now; `wait` below tells.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

#[cfg(test)]
mod tests;
