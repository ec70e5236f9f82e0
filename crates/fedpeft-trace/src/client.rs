//! HTTP to the collector, on the exporter's own thread.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::Agent;

/// Most of an answer that is read.
const LONGEST_ANSWER: u64 = 64 << 10;

/// A blocking client: the exporter has a thread to itself. It logs when the collector goes away and when it is back,
/// and not in between.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    is_away: AtomicBool,
}

impl Client {
    pub fn new(timeout: Duration) -> Self {
        let config = Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false);
        Self { agent: config.build().into(), is_away: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (parts, body) = request.into_parts();
        let mut answer = self.agent.run(Request::from_parts(parts, &body[..]))?;
        let body = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec()?;
        let (parts, _) = answer.into_parts();
        Ok(Response::from_parts(parts, body.into()))
    }

    fn tell(&self, trouble: Option<&str>) {
        match (trouble, self.is_away.swap(trouble.is_some(), Ordering::Relaxed)) {
            (Some(trouble), false) => {
                tracing::warn!(trouble, "the trace collector takes no spans; they are dropped until it does");
            }
            (None, true) => tracing::info!("the trace collector takes spans again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.send(request);
        match &answer {
            Ok(answer) if answer.status().is_success() => self.tell(None),
            Ok(answer) => self.tell(Some(&format!("it answers {}", answer.status()))),
            Err(error) => self.tell(Some(&error.to_string())),
        }
        Ok(answer?)
    }
}
