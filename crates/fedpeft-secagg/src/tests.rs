//! Whole rounds, honest and otherwise. Every message goes through its bytes.

mod adversary;
mod secrecy;
mod sums;
mod vectors;
mod wire;

use ed25519_dalek::SigningKey;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use crate::{
    Client, Encoding, Graph, Member, Message, Params, Peer, Plan, Refusal, Request, Rounding, Server,
    ServerError, Session, Stage, Taken, encoding::Encoded,
};

pub fn identity(member: usize) -> SigningKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(member as u64).to_le_bytes());
    SigningKey::from_bytes(&seed)
}

pub fn name(member: usize) -> String {
    format!("client-{member:04}")
}

pub fn cohort(size: usize) -> Vec<Peer> {
    let peer = |member| Peer { client: name(member), identity: identity(member).verifying_key().to_bytes() };
    (0..size).map(peer).collect()
}

pub fn session(size: usize, plan: Plan, values: u32) -> Session {
    let encoding = Encoding::fit(size, 1.0, 16, 100, 0).unwrap();
    Session::new(Params::new("run", 3, cohort(size), plan, values, encoding)).unwrap()
}

/// A complete graph with a given threshold, and the smallest quorum that goes with it.
pub fn complete(size: usize, threshold: u32) -> Plan {
    Plan { graph: Graph::Complete, threshold, quorum: threshold.max(size as u32 / 2 + 1) }
}

/// A round in one place.
pub struct Federation {
    pub session: Session,
    pub server: Server,
    pub clients: Vec<Client>,
    pub updates: Vec<Vec<i64>>,
    pub rng: ChaCha20Rng,
    /// All that was sent to the server, in order.
    pub log: Vec<Vec<u8>>,
}

impl Federation {
    pub fn new(session: Session, seed: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let enter = |member| Client::new(session.clone(), &name(member), identity(member), &mut rng).unwrap();
        let clients: Vec<_> = (0..session.size()).map(enter).collect();
        let updates = vec![Vec::new(); clients.len()];
        Self { server: Server::new(session.clone()), session, clients, updates, rng, log: Vec::new() }
    }

    /// The update of a member: values that depend on it, with a weight that does too.
    pub fn update(&mut self, member: usize) -> Encoded {
        let values = self.session.params().values as usize;
        let update: Vec<f32> =
            (0..values).map(|at| ((at * 31 + member * 17 + 5) as f32).sin() * 1.2).collect();
        let rounding = Rounding::Stochastic(&mut self.rng);
        let encoding = self.session.params().encoding;
        let weight = 1 + member as u32 % encoding.max_weight;
        let mut add =
            |integers: &mut [i64]| integers.iter_mut().for_each(|value| *value += encoding.noise as i64);
        let noise = (encoding.noise > 0).then_some(&mut add as crate::Noise<'_>);
        let encoded = encoding.encode(&update, weight, rounding, noise).unwrap();
        self.updates[member] = encoded.words.integers().collect();
        encoded
    }

    /// Asks a member, and passes its answer on.
    pub fn step(&mut self, member: usize) -> Result<Taken, ServerError> {
        let request = self.server.request(member as Member)?.map(|request| request.encode().unwrap());
        let answer = self.answer(member, request.as_deref()).unwrap();
        self.send(answer)
    }

    pub fn answer(&mut self, member: usize, request: Option<&[u8]>) -> Result<Vec<u8>, Refusal> {
        let Some(request) = request else { return Ok(self.clients[member].advertise().encode().unwrap()) };
        let session = self.session.clone();
        let request = Request::decode(request, &session).unwrap();
        let message = match request.ask {
            crate::Ask::Share { .. } => self.clients[member].share(&request, &mut self.rng)?,
            crate::Ask::Mask { .. } => {
                let update = self.update(member);
                return Ok(self.clients[member].mask(&request, update)?.message().encode().unwrap());
            }
            crate::Ask::Confirm { .. } => self.clients[member].confirm(&request)?,
            crate::Ask::Unmask { .. } => self.clients[member].unmask(&request)?,
        };
        Ok(message.encode().unwrap())
    }

    pub fn send(&mut self, answer: Vec<u8>) -> Result<Taken, ServerError> {
        let taken = self.server.take(&Message::decode(&answer, &self.session).unwrap())?;
        self.log.push(answer);
        Ok(taken)
    }

    /// Goes through stages up to `last`, where each member drops out in the stage that `leaves` says.
    pub fn run(&mut self, last: Stage, leaves: impl Fn(usize) -> Option<Stage>) -> Result<(), ServerError> {
        while let Some(stage) = self.server.stage().filter(|stage| *stage <= last) {
            for member in 0..self.clients.len() {
                let there = leaves(member).is_none_or(|leaves| leaves > stage);
                if there && self.server.asked(stage).contains(member as Member) {
                    self.step(member)?;
                }
            }
            self.server.close()?;
        }
        Ok(())
    }

    /// The sum of the integers of those who are in.
    pub fn expected(&self) -> Vec<i64> {
        let mut sum = vec![0; self.session.words()];
        for member in self.server.answered(Stage::Mask).iter() {
            sum.iter_mut().zip(&self.updates[member as usize]).for_each(|(sum, integer)| *sum += integer);
        }
        sum
    }

    pub fn sum(&self) -> Result<Vec<i64>, ServerError> {
        Ok(self.server.sum(std::num::NonZero::new(2).unwrap())?.integers().collect())
    }
}
