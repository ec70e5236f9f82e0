//! Waits for the answers of a stage.

use std::{collections::BTreeMap, time::Duration};

use fedpeft_protocol::ClientId;
use fedpeft_service::now_ms;
use tokio::time::{self, interval_at, sleep};

use super::ask;
use crate::{
    drive::Drive,
    phase::collect::{MISSED_CHECKS, PRESENCE_CHECK, TASK_CHECK, take},
    round::RoundState,
    stop::Stop,
};

/// Until all have answered who are asked, or nobody else will, or it is too late.
pub(super) async fn run(drive: &mut Drive<'_>, round: &mut RoundState) -> Result<(), Stop> {
    let deadline = sleep(Duration::from_millis(ask::deadline_ms(drive, round).saturating_sub(now_ms())));
    tokio::pin!(deadline);
    let mut presence_check = interval_at(time::Instant::now() + PRESENCE_CHECK, PRESENCE_CHECK);
    let mut task_check = interval_at(time::Instant::now() + TASK_CHECK, TASK_CHECK);
    let mut missed = BTreeMap::new();
    loop {
        let outstanding = round.secure.as_ref().map(|secure| secure.outstanding()).unwrap_or_default();
        if outstanding.is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            delivery = drive.updates.next() => {
                take(drive, round, delivery).await?;
            }
            _ = presence_check.tick() => {
                let present = drive.present_clients().await?;
                missed.retain(|client: &ClientId, _| outstanding.contains(client));
                for client in &outstanding {
                    let is_present = present.contains_key(client);
                    let count = missed.entry(client.clone()).or_insert(0);
                    *count = if is_present { 0 } else { *count + 1 };
                }
                if outstanding.iter().all(|client| missed.get(client).is_some_and(|n| *n >= MISSED_CHECKS)) {
                    return Ok(());
                }
            }
            _ = task_check.tick() => ask::again(drive, round).await?,
            () = &mut deadline => return Ok(()),
        }
    }
}
