//! A run record in the hands of one owner, changed by compare-and-set only.

use fedpeft_bus::{Bus, Records, Revision};
use fedpeft_protocol::{
    RunId,
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

    /// Changes the record durably; [`Stop::Fenced`] if anybody else changed it.
    pub async fn write(&mut self, change: impl FnOnce(&mut RunRecord)) -> Result<(), Stop> {
        let mut changed = self.value.clone();
        change(&mut changed);
        changed.updated_ms = now_ms();
        self.revision = self.records.update(self.value.run.as_str(), &changed, self.revision).await?;
        self.value = changed;
        Ok(())
    }

    /// Writes the end of the run.
    pub async fn end(&mut self, status: RunStatus) -> Result<(), Stop> {
        self.write(|record| {
            record.status = status;
            record.open = None;
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
