//! The phases of a round. Each takes what the one before left and says which comes next; an error ends the
//! driving of the run, see [`crate::stop::Stop`].

pub(crate) mod broadcast;
pub(crate) mod collect;
pub(crate) mod commit;
pub(crate) mod complete;
pub(crate) mod evaluate;
pub(crate) mod secure;
pub(crate) mod select;

use crate::round::RoundState;

/// Where a run stands.
pub(crate) enum Phase {
    /// No round is open; the next one needs a cohort.
    Select,
    /// A round is open; its tasks must go out.
    Broadcast(Box<RoundState>),
    /// Its tasks are out; its updates come in.
    Collect(Box<RoundState>),
    /// Its clients have trained; the stages of secure aggregation follow.
    Secure(Box<RoundState>),
    /// It has the updates it needs.
    Commit(Box<RoundState>),
    /// It is committed, but not evaluated and announced.
    Evaluate(Box<evaluate::Committed>),
    /// All rounds are done.
    Complete,
}
