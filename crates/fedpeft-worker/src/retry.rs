//! Patience with a broker that is away for a while.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use fedpeft_bus::{Backoff, BusError};
use fedpeft_registry::RegistryError;

/// What a broker cannot give for so long it does not have.
const PATIENCE: Duration = Duration::from_secs(120);

/// Errors that may pass by themselves.
pub(crate) trait Transient {
    fn is_transient(&self) -> bool;
}

impl Transient for BusError {
    fn is_transient(&self) -> bool {
        // A store that is full is emptied as rounds are committed.
        BusError::is_transient(self) || matches!(self, Self::StoreFull { .. })
    }
}

impl Transient for RegistryError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Bus(error) if error.is_transient())
    }
}

/// Repeats `operation` while it fails for a while only, and not past `deadline`.
pub(crate) async fn retrying<T, E: Transient + std::fmt::Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    deadline: Instant,
    mut operation: impl FnMut() -> F,
) -> Result<T, E> {
    let give_up = deadline.min(Instant::now() + PATIENCE);
    let mut backoff = Backoff::default();
    loop {
        match operation().await {
            Err(error) if error.is_transient() && Instant::now() < give_up => {
                tracing::debug!(what, %error, "trying again");
                tokio::time::sleep(backoff.pause()).await;
            }
            settled => return settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    fn timeout() -> BusError {
        BusError::Timeout { what: "it".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_repeated_and_what_does_not_is_not() {
        let (soon, mut tries) = (Instant::now() + PATIENCE, 0);
        let done = retrying("it", soon, || {
            tries += 1;
            ready(if tries < 4 { Err(timeout()) } else { Ok(tries) })
        });
        assert_eq!(done.await.unwrap(), 4);
        let mut tries = 0;
        let failed = retrying("it", soon, || {
            tries += 1;
            ready(Err::<(), _>(BusError::Key { key: "k".into() }))
        });
        assert!(failed.await.is_err());
        assert_eq!(tries, 1);
        // Nobody waits any more.
        let mut tries = 0;
        let late = retrying("it", Instant::now(), || {
            tries += 1;
            ready(Err::<(), _>(timeout()))
        });
        assert!(late.await.is_err());
        assert_eq!(tries, 1);
    }
}
