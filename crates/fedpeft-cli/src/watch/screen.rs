//! The screen: what is told of a run goes into a state, which is drawn again and again.

use std::{
    io,
    pin::pin,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use fedpeft_bus::Bus;
use fedpeft_protocol::{
    RunId,
    event::Event,
    round::RoundReport,
    run::{RunRecord, RunView},
};
use fedpeft_watch::{State, draw, svg};
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{self, Event as Key, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::{sync::mpsc, time};

use crate::{
    follow::{self, Watcher},
    records, simulate,
};

/// How often the screen is drawn when nothing happens: a countdown has seconds.
const FRAME: Duration = Duration::from_millis(250);
/// How long the keyboard is waited for before it is asked whether anybody still reads it.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// Events that are stored come fast; after so long without one there is none.
const SILENCE: Duration = Duration::from_millis(500);
/// Columns and rows of a picture.
const PICTURE: (u16, u16) = (110, 30);

/// Gives the terminal back, however the screen is left.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What is told of a run.
enum Told {
    Event(Box<Event>),
    Record(Box<RunRecord>),
    Report(Box<RoundReport>),
}

impl Told {
    fn apply(self, state: &mut State) {
        match self {
            Self::Event(event) => state.event(&event),
            Self::Record(record) => state.record(&record),
            Self::Report(report) => state.report(&report),
        }
    }
}

/// Passes on what it is told.
struct Teller(mpsc::UnboundedSender<Told>);

impl Watcher for Teller {
    fn event(&mut self, event: &Event) {
        let _ = self.0.send(Told::Event(Box::new(event.clone())));
    }

    fn record(&mut self, record: &RunRecord) {
        let _ = self.0.send(Told::Record(Box::new(record.clone())));
    }

    fn report(&mut self, report: &RoundReport) {
        let _ = self.0.send(Told::Report(Box::new(report.clone())));
    }
}

/// Fills the screen until somebody leaves it; returns what became of the run, if it was over by then.
pub async fn show(bus: &Bus, run: &RunId) -> Result<Option<RunView>> {
    let mut state = stored(bus, run).await?;
    let mut terminal = ratatui::try_init().context("the terminal cannot be used: try --plain")?;
    let _restore = Restore;
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut teller = Teller(tell);
    let mut follower = pin!(follow::to_the_end(bus, run, &mut teller));
    let mut leaving = pin!(leaving(keys()));
    let mut frame = time::interval(FRAME);
    frame.set_missed_tick_behavior(time::MissedTickBehavior::Skip);
    let mut ended = None;
    loop {
        tokio::select! {
            biased;
            () = &mut leaving => break,
            over = &mut follower, if ended.is_none() => ended = Some(over?),
            _ = frame.tick() => {}
        }
        while let Ok(one) = told.try_recv() {
            one.apply(&mut state);
        }
        terminal.draw(|frame| draw(frame, &state, now_ms())).context("the terminal cannot be drawn to")?;
    }
    Ok(ended)
}

/// The screen as it is now, as SVG.
pub async fn picture(bus: &Bus, run: &RunId) -> Result<String> {
    let mut state = stored(bus, run).await?;
    let mut events = bus.events(Some(run), true).await?;
    while let Ok(event) = time::timeout(SILENCE, events.next()).await {
        state.event(&event?);
        if events.pending() == 0 {
            break;
        }
    }
    let mut terminal = Terminal::new(TestBackend::new(PICTURE.0, PICTURE.1))?;
    terminal.draw(|frame| draw(frame, &state, now_ms()))?;
    Ok(svg(terminal.backend().buffer()))
}

/// What is stored of a run: there before its events are read, and without those that are lost.
async fn stored(bus: &Bus, run: &RunId) -> Result<State> {
    let view = records::view(bus, run).await?;
    let mut state = State::new(&view.record);
    view.rounds.iter().for_each(|report| state.report(report));
    Ok(state)
}

/// Ends when somebody wants to leave: q, Escape, Ctrl-C, or a signal.
async fn leaving(mut keys: mpsc::UnboundedReceiver<Key>) {
    let pressed = async {
        while let Some(key) = keys.recv().await {
            if is_goodbye(&key) {
                return;
            }
        }
        // The keyboard is gone; a signal still ends it.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = pressed => {}
        () = simulate::interrupted() => {}
    }
}

fn is_goodbye(key: &Key) -> bool {
    let Key::Key(key) = key else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let leaves = matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc)
        || (control && key.code == KeyCode::Char('c'));
    leaves && key.kind == KeyEventKind::Press
}

/// Keys as they are pressed. Reading them blocks, so that a thread does it; it ends once nobody wants them.
fn keys() -> mpsc::UnboundedReceiver<Key> {
    let (pressed, keys) = mpsc::unbounded_channel();
    let read = move || -> io::Result<()> {
        while !pressed.is_closed() {
            if event::poll(KEY_WAIT)? && pressed.send(event::read()?).is_err() {
                break;
            }
        }
        Ok(())
    };
    thread::spawn(read);
    keys
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn one_leaves_with_q_escape_or_control_c() {
        let key = |code, modifiers| Key::Key(KeyEvent::new(code, modifiers));
        for (code, modifiers) in [
            (KeyCode::Char('q'), KeyModifiers::NONE),
            (KeyCode::Esc, KeyModifiers::NONE),
            (KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert!(is_goodbye(&key(code, modifiers)), "{code:?}");
        }
        assert!(!is_goodbye(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!is_goodbye(&Key::Resize(80, 24)));
    }
}
