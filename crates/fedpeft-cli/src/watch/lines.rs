//! Events as lines of JSON.

use std::{collections::BTreeSet, io::Write as _};

use fedpeft_protocol::{
    PROTOCOL_VERSION, Round,
    event::{Event, EventKind},
    round::RoundReport,
    run::RunRecord,
};

use crate::follow::Watcher;

/// Prints every event as it is stored, and rounds that no event told of as if one had.
#[derive(Debug, Default)]
pub struct Lines {
    told: BTreeSet<Round>,
    untold: Vec<RoundReport>,
}

fn print(event: &Event) {
    // A reader that went away must not end anything.
    if let Ok(line) = serde_json::to_string(event) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

impl Watcher for Lines {
    fn event(&mut self, event: &Event) {
        if let EventKind::RoundClosed { report } = &event.kind {
            self.told.insert(report.round);
        }
        print(event);
    }

    fn report(&mut self, report: &RoundReport) {
        if self.told.insert(report.round) {
            self.untold.push(report.clone());
        }
    }

    fn end(&mut self, record: &RunRecord) {
        for report in self.untold.drain(..) {
            let (epoch, kind) = (report.epoch, EventKind::RoundClosed { report: Box::new(report) });
            let (run, at_ms) = (record.run.clone(), record.updated_ms);
            print(&Event { version: PROTOCOL_VERSION, run, at_ms, epoch, kind });
        }
    }
}
