//! What our layer over NATS takes, beside NATS without it, one message at a time.

use std::time::Instant;

use anyhow::{Context as _, Result};
use async_nats::jetstream;
use bytes::Bytes;
use fedpeft_bus::Bus;
use fedpeft_protocol::{
    ClientId, PROTOCOL_VERSION, RunId,
    round::{Outcome, Payload, Update},
    wire::Format,
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use crate::{
    figure::{Figure, Section, Spread},
    rounds::Size,
    world::{self, Broker},
};

/// Text of a request.
const BODY: usize = 1000;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Echo {
    body: String,
}

/// Requests and durable updates. What is compared takes turns, so that all meet the machine in the same mood.
pub async fn trips(quick: bool) -> Result<Vec<Figure>> {
    let times = if quick { 100 } else { 500 };
    let broker = Broker::start().await?;
    let mut figures = vec![requests(&broker, times).await?];
    for size in [Size::Bias, Size::Lora] {
        figures.push(updates(&broker, size, times / 5).await?);
    }
    Ok(figures)
}

async fn requests(broker: &Broker, times: usize) -> Result<Figure> {
    let mut service = broker.bus.service("bench", "answers").await?;
    service.endpoint("bench.echo", |echo: Echo| async move { Ok(echo) }).await?;
    let raw = async_nats::connect(broker.url()).await?;
    let mut asked = raw.subscribe("raw.echo").await?;
    raw.flush().await?;
    let answering = raw.clone();
    let answers = tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            if let Some(reply) = message.reply {
                // Nobody waits for an answer that cannot be sent.
                let _ = answering.publish(reply, message.payload).await;
            }
        }
    });
    let asking = async_nats::connect(broker.url()).await?;
    let caller = broker.connect().await?;
    let echo = Echo { body: "x".repeat(BODY) };
    let body = Bytes::from(Format::MessagePack.encode(&echo)?);
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let asked = async {
            asking.request("raw.echo", body.clone()).await?;
            anyhow::Ok(())
        };
        plain.push(timed(asked).await?);
        let asked = async {
            caller.request::<_, Echo>("bench.echo", &echo).await?;
            anyhow::Ok(())
        };
        ours.push(timed(asked).await?);
    }
    answers.abort();
    let figure = Figure::new(Section::Broker, "request and reply", "1 kB of MessagePack");
    Ok(figure.is(Spread::of(ours), "ms").beside("request of plain NATS", Spread::of(plain)))
}

async fn updates(broker: &Broker, size: Size, times: usize) -> Result<Figure> {
    let js = jetstream::new(async_nats::connect(broker.url()).await?);
    let subjects = vec!["raw.update.>".to_owned()];
    let config = jetstream::stream::Config { name: "raw".into(), subjects, ..Default::default() };
    js.create_stream(config).await?;
    let adapter = world::adapter(size.values());
    let (run, client) = (RunId::new("bench")?, ClientId::new("c")?);
    let bus: &Bus = &broker.bus;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for number in 0..times {
        let body = adapter.clone();
        let publishing = async {
            js.publish(format!("raw.update.{number}"), body).await?.await?;
            Ok(())
        };
        plain.push(timed(publishing).await?);
        let update = update(number, adapter.clone());
        let round = u32::try_from(number).context("too many updates")? + 1;
        let publishing = async {
            bus.publish_update(&run, round, &client, &update).await?;
            Ok(())
        };
        ours.push(timed(publishing).await?);
    }
    js.delete_stream("raw").await?;
    let figure = Figure::new(Section::Broker, "durable update", size.to_string()).at(adapter.len() as f64);
    Ok(figure.is(Spread::of(ours), "ms").beside("JetStream publish", Spread::of(plain)))
}

fn update(number: usize, adapter: Bytes) -> Update {
    let outcome = Outcome::Trained {
        examples: 1,
        steps: 1,
        loss: 1.0,
        seconds: 0.0,
        adapter: Payload::inline(adapter),
        personal: None,
        control: None,
        epsilon: None,
    };
    let task = format!("bench/{number}");
    Update { version: PROTOCOL_VERSION, epoch: 1, task, outcome, fetched: Vec::new() }
}

/// Milliseconds.
async fn timed(work: impl Future<Output = Result<()>>) -> Result<f64> {
    let started = Instant::now();
    work.await?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}
