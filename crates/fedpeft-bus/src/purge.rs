//! Forgetting tasks and updates.
//!
//! A process may sleep between its decision to forget and the purge, and what was published meanwhile is none of its
//! business: it may belong to the next owner of the run. So every purge ends at a [`Mark`] that was taken before the
//! decision was known to be right.

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream::{
    consumer::{AckPolicy, pull},
    stream::Info,
};
use fedpeft_protocol::{ClientId, Round, RunId, subject};
use futures::TryStreamExt as _;

use crate::{Bus, BusError};

/// The end of a stream at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    stream: &'static str,
    /// Sequence of the next message.
    next: u64,
    /// Messages that the stream has.
    messages: u64,
    /// Whether one server has them, and all that is said of them is of one moment.
    is_single: bool,
}

/// The broker forgets a consumer that nobody asks for so long.
const INACTIVE: Duration = Duration::from_secs(10);
/// From so many messages on, it is worth a look whether a stream has any others.
const MANY: u64 = 1000;

/// Updates to forget.
#[derive(Debug, Clone, Copy)]
pub enum Stale<'a> {
    /// All of the run.
    Run,
    /// Those of a round.
    Round(Round),
    /// Those of one client for a round.
    Client(Round, &'a ClientId),
}

impl Bus {
    /// The end of the stream of tasks.
    pub async fn task_mark(&self) -> Result<Mark, BusError> {
        self.mark(subject::TASK_STREAM).await
    }

    /// The end of the stream of updates.
    pub async fn update_mark(&self) -> Result<Mark, BusError> {
        self.mark(subject::UPDATE_STREAM).await
    }

    /// Forgets the tasks of `run` that were sent before `mark`, which [`Self::task_mark`] gave.
    pub async fn purge_tasks(&self, run: &RunId, mark: Mark) -> Result<(), BusError> {
        self.purge_many(mark, subject::tasks_of_run(run)).await
    }

    /// Forgets the task of one client in `run`, if it was sent before `mark`.
    pub async fn purge_task(&self, run: &RunId, client: &ClientId, mark: Mark) -> Result<(), BusError> {
        self.purge(mark, subject::task(run, client)).await
    }

    /// Forgets updates of `run` that were stored before `mark`, which [`Self::update_mark`] gave.
    pub async fn purge_updates(&self, run: &RunId, stale: Stale<'_>, mark: Mark) -> Result<(), BusError> {
        match stale {
            Stale::Run => self.purge_many(mark, subject::updates_of(run)).await,
            Stale::Round(round) => self.purge_many(mark, subject::updates_of_round(run, round)).await,
            Stale::Client(round, client) => self.purge(mark, subject::update(run, round, client)).await,
        }
    }

    /// Runs that updates are stored for, whether there are such runs or not: at most `most` of them.
    pub async fn runs_with_updates(&self, most: usize) -> Result<BTreeSet<RunId>, BusError> {
        let failed = |error: &dyn std::fmt::Display| BusError::broker("listing the runs of updates", error);
        let stream = self.js.get_stream_no_info(subject::UPDATE_STREAM).await;
        let stream = stream.map_err(|error| failed(&error))?;
        let listed = stream.info_with_subjects(subject::UPDATE_SUBJECTS).await;
        let mut subjects = listed.map_err(|error| failed(&error))?;
        let mut runs = BTreeSet::new();
        while let Some((subject, _)) = subjects.try_next().await.map_err(|error| failed(&error))? {
            runs.extend(subject::parse_update(&subject).map(|(run, ..)| run));
            if runs.len() >= most {
                break;
            }
        }
        Ok(runs)
    }

    async fn mark(&self, stream: &'static str) -> Result<Mark, BusError> {
        let info = self.js.get_stream(stream).await;
        let info = info.map_err(|error| BusError::broker(format!("looking up stream {stream}"), error))?;
        let Info { state, config, .. } = info.cached_info();
        let is_single = config.num_replicas == 1;
        Ok(Mark { stream, next: state.last_sequence + 1, messages: state.messages, is_single })
    }

    async fn purge(&self, mark: Mark, filter: String) -> Result<(), BusError> {
        let stream = self.js.get_stream_no_info(mark.stream).await;
        let stream = stream.map_err(|error| failed(&filter, error))?;
        let purging = stream.purge().filter(filter.clone()).sequence(mark.next);
        purging.await.map_err(|error| failed(&filter, error))?;
        Ok(())
    }

    /// As [`Self::purge`], where there may be many. What it has to choose, the broker reads; all before a place it drops unread.
    async fn purge_many(&self, mark: Mark, filter: String) -> Result<(), BusError> {
        let may_be_alone = mark.is_single && mark.messages >= MANY;
        if !may_be_alone || !self.has_no_others(mark.stream, &filter).await? {
            return self.purge(mark, filter).await;
        }
        let stream = self.js.get_stream_no_info(mark.stream).await;
        let stream = stream.map_err(|error| failed(&filter, error))?;
        stream.purge().sequence(mark.next).await.map_err(|error| failed(&filter, error))?;
        Ok(())
    }

    /// Whether all messages in a stream match `filter`: as many do as there are, and none came while they were counted.
    async fn has_no_others(&self, stream: &'static str, filter: &str) -> Result<bool, BusError> {
        let before = self.mark(stream).await?;
        let counting = pull::Config {
            name: Some(self.unique()),
            ack_policy: AckPolicy::None,
            filter_subject: filter.to_owned(),
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let counted = self.js.create_consumer_on_stream(counting, stream).await;
        let counted = counted.map_err(|error| failed(filter, error))?;
        let found = counted.cached_info().num_pending;
        if let Err(error) = self.js.delete_consumer_from_stream(&counted.cached_info().name, stream).await {
            tracing::debug!(%error, stream, "counting consumer left to expire");
        }
        Ok(before == self.mark(stream).await? && found == before.messages)
    }

    /// Forgets what is stored under names that nothing else will ever have.
    pub(crate) async fn purge_whole(&self, stream: &str, filter: String) -> Result<(), BusError> {
        let stream = self.js.get_stream_no_info(stream).await.map_err(|error| failed(&filter, error))?;
        stream.purge().filter(filter.clone()).await.map_err(|error| failed(&filter, error))?;
        Ok(())
    }
}

fn failed(filter: &str, error: impl std::fmt::Display) -> BusError {
    BusError::broker(format!("purging {filter}"), error)
}
