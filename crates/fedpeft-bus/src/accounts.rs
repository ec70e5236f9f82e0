//! Telling a server of changed accounts.

use std::time::Duration;

use serde::Deserialize;

use crate::{Bus, BusError};

/// Where a server with a resolver of its own takes account tokens, from users of its system account.
const UPDATE: &str = "$SYS.REQ.CLAIMS.UPDATE";
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Reply {
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Problem {
    description: String,
}

impl Bus {
    /// Gives the server the token of an account, and waits until it is in force there. Needs credentials of the
    /// system account.
    pub async fn push_account(&self, token: &str) -> Result<(), BusError> {
        let what = "telling the NATS server of changed accounts";
        let request = async_nats::Request::new().payload(token.to_owned().into()).timeout(Some(PATIENCE));
        let reply = tokio::select! {
            reply = self.client.send_request(UPDATE, request) => reply,
            () = self.forbids(UPDATE) => return Err(BusError::Forbidden { what: what.into() }),
        };
        let reply = reply.map_err(|error| BusError::broker(what, error))?;
        let reply: Reply =
            serde_json::from_slice(&reply.payload).map_err(|error| BusError::broker(what, error))?;
        reply.error.map_or(Ok(()), |problem| Err(BusError::broker(what, problem.description)))
    }
}
