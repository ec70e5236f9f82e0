//! Messages that come again, late and in another order.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use async_nats::{Client, HeaderMap, Message, header::NATS_MESSAGE_ID};
use fedpeft_protocol::{round::Update, subject, wire::Format};
use futures::StreamExt as _;
use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinHandle;

/// Messages that are remembered: those of many rounds.
const REMEMBERED: usize = 400;

/// Remembers tasks and updates as they pass.
pub struct Tap {
    client: Client,
    heard: Arc<Mutex<VecDeque<Message>>>,
    listening: JoinHandle<()>,
}

impl Tap {
    /// Listens on a connection of its own.
    pub async fn new(client: Client) -> Self {
        let updates = client.subscribe(subject::UPDATE_SUBJECTS).await.unwrap();
        let tasks = client.subscribe(subject::TASK_SUBJECTS).await.unwrap();
        let heard = Arc::<Mutex<VecDeque<Message>>>::default();
        let remembered = heard.clone();
        let listening = tokio::spawn(async move {
            let mut messages = futures::stream::select(updates, tasks);
            while let Some(message) = messages.next().await {
                let mut heard = remembered.lock().unwrap();
                heard.push_back(message);
                if heard.len() > REMEMBERED {
                    heard.pop_front();
                }
            }
        });
        Self { client, heard, listening }
    }

    /// Sends `count` of them again under new names: of this round, of closed ones, some updates with the fencing
    /// token of an earlier owner. Returns how many the broker stored.
    pub async fn replay(&self, count: usize, seed: u64) -> usize {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut messages: Vec<Message> = self.heard.lock().unwrap().iter().cloned().collect();
        messages.shuffle(&mut random);
        messages.truncate(count);
        let stream = async_nats::jetstream::new(self.client.clone());
        let mut stored = 0;
        for (i, message) in messages.into_iter().enumerate() {
            let mut headers: HeaderMap = message.headers.clone().unwrap_or_default();
            headers.insert(NATS_MESSAGE_ID, format!("again/{seed}/{i}"));
            let payload = match earlier_owner(&message) {
                Some(forged) if random.random_range(0..3) == 0 => forged.into(),
                _ => message.payload.clone(),
            };
            let subject = message.subject.to_string();
            if let Ok(sent) = stream.publish_with_headers(subject, headers, payload).await {
                stored += usize::from(sent.await.is_ok());
            }
        }
        stored
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// An update as an earlier owner's client would have sent it.
fn earlier_owner(message: &Message) -> Option<Vec<u8>> {
    let update: Update = Format::MessagePack.decode(&message.payload).ok()?;
    let epoch = update.epoch.checked_sub(1)?;
    Format::MessagePack.encode(&Update { epoch, ..update }).ok()
}
