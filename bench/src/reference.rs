//! The reference: the broker taking the same bytes from somebody who knows nothing of rounds.

use std::time::{Duration, Instant};

use anyhow::Result;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::clients::AT_ONCE;

/// A disk that others keep busy is slow, and not broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds that `count` messages of `size` bytes take to be published to a stream on disk and acknowledged, as many at
/// once as clients publish; so often.
pub async fn publishing(server: &str, count: u32, size: usize, times: usize) -> Result<Vec<f64>> {
    let mut js = jetstream::new(async_nats::connect(server).await?);
    js.set_timeout(PATIENCE);
    let subjects = vec!["reference.>".to_owned()];
    let config = stream::Config { name: "reference".into(), subjects, ..Default::default() };
    let stream = js.create_stream(config).await?;
    let body = Bytes::from(vec![7u8; size]);
    let mut seconds = Vec::new();
    for _ in 0..times {
        let started = Instant::now();
        let publishing = (0..count).map(|number| {
            let (js, body) = (js.clone(), body.clone());
            async move {
                js.publish(format!("reference.{number}"), body).await?.await?;
                anyhow::Ok(())
            }
        });
        futures::stream::iter(publishing).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        seconds.push(started.elapsed().as_secs_f64());
        stream.purge().await?;
    }
    js.delete_stream("reference").await?;
    Ok(seconds)
}
