//! Services: request and reply, visible to `nats micro ls`. A service answers in the encoding it was asked
//! in, so that people can ask in JSON.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use async_nats::{
    HeaderMap, RequestErrorKind,
    service::{self, NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, ServiceExt},
};
use fedpeft_protocol::{
    subject,
    wire::{Format, WireError},
};
use fedpeft_trace::{Instrument, span};
use futures::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinSet;

use crate::{
    ApiError, Bus, BusError,
    admission::{Admission, Limits},
    measure::header_bytes,
    publish,
};

/// Times a request is made while the service says that it has no room.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A service that stops finishes what it has begun within this time.
const STOP_WITHIN: Duration = Duration::from_secs(5);
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A running service. It stops when dropped.
pub struct Service {
    inner: service::Service,
    endpoints: JoinSet<()>,
    client: async_nats::Client,
    max_payload: usize,
    limits: Limits,
}

impl Bus {
    /// Registers a service; its endpoints are added with [`Service::endpoint`].
    pub async fn service(&self, name: &str, description: &str) -> Result<Service, BusError> {
        let inner = self
            .client
            .service_builder()
            .description(description)
            .metadata(HashMap::from([(
                "protocol".to_owned(),
                fedpeft_protocol::PROTOCOL_VERSION.to_string(),
            )]))
            .start(name, env!("CARGO_PKG_VERSION"))
            .await
            .map_err(|error| BusError::broker(format!("registering service {name}"), error))?;
        Ok(Service {
            inner,
            endpoints: JoinSet::new(),
            client: self.client.clone(),
            max_payload: self.max_payload(),
            limits: Limits::default(),
        })
    }

    /// Asks an endpoint, for instance `runs.create`; again after a while where it has no room at the moment.
    pub async fn request<Req: Serialize, Resp: DeserializeOwned>(
        &self,
        endpoint: &str,
        request: &Req,
    ) -> Result<Resp, BusError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match self.ask(endpoint, request).await {
                Err(BusError::Api(error)) if error.code == ApiError::TOO_MANY => {
                    tracing::debug!(endpoint, %error, "asking again");
                }
                settled => return settled,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.ask(endpoint, request).await
    }

    async fn ask<Req: Serialize, Resp: DeserializeOwned>(
        &self,
        endpoint: &str,
        request: &Req,
    ) -> Result<Resp, BusError> {
        let (headers, body) = publish::encode(endpoint, request)?;
        self.check_size(&format!("request to {endpoint}"), header_bytes(&headers) + body.len())?;
        let message = async_nats::Request::new().headers(headers).payload(body).timeout(Some(REPLY_TIMEOUT));
        let target = format!("{}.{endpoint}", subject::API);
        let reply = tokio::select! {
            reply = self.client.send_request(target.clone(), message) => reply,
            () = self.forbids(&target) => return Err(BusError::Forbidden { what: format!("asking {endpoint}") }),
        };
        let reply = reply.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => {
                BusError::NoService { endpoint: endpoint.into(), service: serving(endpoint) }
            }
            RequestErrorKind::TimedOut => BusError::Timeout { what: format!("asking {endpoint}") },
            _ => BusError::broker(format!("asking {endpoint}"), error),
        })?;
        if let Some(error) = reply.headers.as_ref().and_then(api_error) {
            return Err(BusError::Api(error));
        }
        publish::decode(reply.headers.as_ref(), &reply.payload)
            .map_err(|error| BusError::wire(format!("reply of {endpoint}"), error))
    }
}

impl Service {
    /// Replaces the limits of the endpoints that are added after this.
    pub fn limit(&mut self, limits: Limits) -> &mut Self {
        self.limits = limits;
        self
    }

    /// Serves `fedpeft.v1.api.<name>` with `handler`.
    pub async fn endpoint<Req, Resp, Handler, Reply>(
        &mut self,
        name: &str,
        handler: Handler,
    ) -> Result<&mut Self, BusError>
    where
        Req: DeserializeOwned + Send + 'static,
        Resp: Serialize + Send + 'static,
        Handler: Fn(Req) -> Reply + Send + Sync + 'static,
        Reply: Future<Output = Result<Resp, ApiError>> + Send + 'static,
    {
        let subject = format!("{}.{name}", subject::API);
        let mut requests = self
            .inner
            .endpoint_builder()
            .name(name.replace('.', "-"))
            .add(subject.as_str())
            .await
            .map_err(|error| BusError::broker(format!("registering endpoint {name}"), error))?;
        let handler = Arc::new(handler);
        let mut admission = Admission::new(self.limits);
        let (name, max_payload) = (name.to_owned(), self.max_payload);
        self.endpoints.spawn(async move {
            // Handlers end with the endpoint: the set aborts them when it is dropped.
            let mut running = JoinSet::new();
            while let Some(request) = requests.next().await {
                while running.try_join_next().is_some() {}
                if !is_request(&request.message, &subject) {
                    tracing::debug!(endpoint = name, "what a consumer delivered ignored");
                    continue;
                }
                match admission.admit(running.len()) {
                    Ok(()) => {}
                    Err(error) => {
                        // Whoever floods the service should not fill its log as well.
                        tracing::debug!(endpoint = name, error = error.message, "request refused");
                        respond_error(&name, &request, error).await;
                        continue;
                    }
                }
                let (handler, name) = (handler.clone(), name.clone());
                let span = span!("request", otel.name = %subject, otel.kind = "server");
                publish::origin(request.message.headers.as_ref()).adopt(&span);
                let answering = async move { answer(&name, &request, handler.as_ref(), max_payload).await };
                running.spawn(answering.instrument(span));
            }
            while running.join_next().await.is_some() {}
        });
        Ok(self)
    }

    /// Takes the service off the bus: no new request comes, those begun are answered.
    pub async fn stop(mut self) {
        if let Err(error) = self.inner.stop().await {
            tracing::debug!(%error, "service was not stopped in order");
        }
        let ended = async { while self.endpoints.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, ended).await.is_err() {
            tracing::warn!("requests still at work after {} s are given up", STOP_WITHIN.as_secs());
        }
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "connection was not flushed");
        }
    }
}

/// Whether somebody asked. Whoever may make a consumer has the broker deliver messages and heartbeats to whatever
/// subject it likes, this one included; but a stored message keeps the subject it was published to, which permissions
/// guard, and a heartbeat has a status.
fn is_request(message: &async_nats::Message, subject: &str) -> bool {
    message.subject.as_str() == subject && message.status.is_none()
}

async fn answer<Req, Resp, Handler, Reply>(
    name: &str,
    request: &service::Request,
    handler: &Handler,
    max_payload: usize,
) where
    Req: DeserializeOwned,
    Resp: Serialize,
    Handler: Fn(Req) -> Reply,
    Reply: Future<Output = Result<Resp, ApiError>>,
{
    let reply = match read(&request.message) {
        Ok((format, message)) => match handler(message).await {
            Ok(reply) => write(format, &reply, max_payload),
            Err(error) => Err(error),
        },
        Err(error) => Err(ApiError::bad_request(error)),
    };
    match reply {
        Ok((headers, body)) => {
            if let Err(error) = request.respond_with_headers(Ok(body.into()), headers).await {
                tracing::warn!(endpoint = name, %error, "reply not sent");
            }
        }
        Err(error) => {
            if error.code >= 500 {
                tracing::error!(endpoint = name, error = error.message, "request failed");
            } else {
                tracing::info!(endpoint = name, code = error.code, error = error.message, "request refused");
            }
            respond_error(name, request, error).await;
        }
    }
}

async fn respond_error(name: &str, request: &service::Request, error: ApiError) {
    let error = service::error::Error { status: error.message, code: error.code.into() };
    if let Err(error) = request.respond(Err(error)).await {
        tracing::warn!(endpoint = name, %error, "reply not sent");
    }
}

fn read<Req: DeserializeOwned>(message: &async_nats::Message) -> Result<(Format, Req), WireError> {
    let header = message.headers.as_ref().and_then(|headers| headers.get(subject::CONTENT_TYPE));
    let format = Format::sniff(header.map(|value| value.as_str()), &message.payload)?;
    // `nats req SUBJECT ""` means a request without arguments.
    let body =
        if format == Format::Json && message.payload.is_empty() { b"{}" } else { &message.payload[..] };
    Ok((format, format.decode(body)?))
}

fn write<Resp: Serialize>(
    format: Format,
    reply: &Resp,
    max_payload: usize,
) -> Result<(HeaderMap, Vec<u8>), ApiError> {
    let body = format.encode(reply).map_err(ApiError::internal)?;
    let mut headers = HeaderMap::new();
    headers.insert(subject::CONTENT_TYPE, format.content_type());
    let size = header_bytes(&headers) + body.len();
    if size > max_payload {
        let message = format!("the reply has {size} bytes, the NATS server takes {max_payload}");
        return Err(ApiError::internal(message));
    }
    Ok((headers, body))
}

fn api_error(headers: &HeaderMap) -> Option<ApiError> {
    let message = headers.get(NATS_SERVICE_ERROR)?.as_str();
    let code =
        headers.get(NATS_SERVICE_ERROR_CODE).and_then(|code| code.as_str().parse().ok()).unwrap_or(500);
    Some(ApiError::new(code, message))
}

fn serving(endpoint: &str) -> &'static str {
    if endpoint.starts_with("models.") { "fedpeft-registry" } else { "fedpeft-aggregator" }
}
