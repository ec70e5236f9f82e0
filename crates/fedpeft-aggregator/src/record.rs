//! A run record in the hands of one owner, changed by compare-and-set only.

use std::collections::BTreeSet;

use fedpeft_bus::{Bus, Records, Revision};
use fedpeft_protocol::{
    Round, RunId,
    run::{RunRecord, RunStatus},
};
use fedpeft_service::now_ms;

use crate::stop::Stop;

/// A run record and the revision at which this owner knows it.
pub(crate) struct OwnedRecord {
    value: RunRecord,
    revision: Revision,
    records: Records<RunRecord>,
}

impl OwnedRecord {
    /// Takes the run: draws a new fencing token, which makes every write of an earlier owner fail. Nothing,
    /// if the run has ended.
    pub async fn take(bus: &Bus, run: &RunId) -> Result<Option<Self>, Stop> {
        let records = bus.runs().await?;
        match records.get(run.as_str()).await? {
            Some((value, revision)) if !value.status.is_final() => {
                let mut taken = Self { value, revision, records };
                taken.write(|record| record.epoch += 1).await?;
                Ok(Some(taken))
            }
            _ => Ok(None),
        }
    }

    /// A record as it was read.
    pub fn of(value: RunRecord, revision: Revision, records: Records<RunRecord>) -> Self {
        Self { value, revision, records }
    }

    /// Changes the record durably; [`Stop::Fenced`] if anybody else changed it.
    pub async fn write(&mut self, change: impl FnOnce(&mut RunRecord)) -> Result<(), Stop> {
        let mut changed = self.value.clone();
        change(&mut changed);
        changed.updated_ms = now_ms();
        self.revision = self.records.update(self.value.run.as_str(), &changed, self.revision).await?;
        self.value = changed;
        Ok(())
    }

    /// Makes sure that nobody else has changed the record; [`Stop::Fenced`] if somebody has.
    pub async fn confirm(&self) -> Result<(), Stop> {
        match self.records.get(self.value.run.as_str()).await? {
            Some((_, revision)) if revision == self.revision => Ok(()),
            _ => Err(Stop::Fenced),
        }
    }

    /// Rounds whose updates nobody waits for once the run ends.
    pub fn given_up(&self) -> BTreeSet<Round> {
        given_up(&self.value)
    }

    /// Writes the end of the run.
    pub async fn end(&mut self, status: RunStatus) -> Result<(), Stop> {
        self.write(|record| {
            record.status = status;
            record.open = None;
            record.carried.clear();
        })
        .await
    }
}

impl std::ops::Deref for OwnedRecord {
    type Target = RunRecord;

    fn deref(&self) -> &RunRecord {
        &self.value
    }
}

/// Rounds for which updates may be stored: the open one, and those in which carried clients began.
pub(crate) fn given_up(record: &RunRecord) -> BTreeSet<Round> {
    let open = record.open.iter().map(|open| open.round);
    open.chain(record.carried.iter().map(|carried| carried.round)).collect()
}
