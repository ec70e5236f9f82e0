//! Secure aggregation: what a client keeps between the stages of a round, and what it says in each.
//!
//! Its secrets and its trained update are in memory and nowhere else: a worker that is started again has dropped out of
//! the sessions of its clients, which the others recover from. A task that comes again is answered with the bytes of its
//! first answer.

mod identity;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fedpeft_privacy::{NoiseSecret, NoiseStream, Scale};
use fedpeft_protocol::{
    ClientId, Digest, RunId,
    round::{ByteKind, Direction, Outcome, Payload, Task, Transfer, Work},
    secure::{SecureStage, SecureTrained},
};
use fedpeft_secagg::{Client, Noise, Params, Request, Rounding, Session, SigningKey};

pub(crate) use identity::{Identities, random};

use crate::{
    local::Beginning,
    retry::retrying,
    task::{Assignment, Failure, Workshop},
};

/// Bytes of the largest parameters: those of ten thousand clients with long names.
const MOST_PARAMS: u64 = 4 << 20;
/// How long a session is kept after the last deadline that its client was told of.
const KEPT: Duration = Duration::from_secs(600);

/// The sessions that clients of this process are in: one of each client and run, and as many updates in memory.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<BTreeMap<(RunId, ClientId), Entry>>);

struct Entry {
    /// Name of the task that was answered last, and the answer.
    task: String,
    answer: Outcome,
    /// None once all has been said.
    member: Option<Member>,
    expires: Instant,
}

/// A client between two stages.
struct Member {
    session: Session,
    client: Client,
    /// What the client trained, less what it began with; none once it was sent.
    update: Option<Arc<Vec<f32>>>,
    weight: u32,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(RunId, ClientId), Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was answered to this task.
    fn said(&self, task: &Task, client: &ClientId) -> Option<Outcome> {
        let entries = self.lock();
        let entry = entries.get(&(task.run.clone(), client.clone()))?;
        (entry.task == task.task).then(|| entry.answer.clone())
    }

    /// Takes a client out to work for it; none if it is in no session that has said `after`.
    fn take(&self, task: &Task, client: &ClientId, after: &Digest) -> Option<Member> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&(task.run.clone(), client.clone()))?;
        match &entry.answer {
            Outcome::Secured { message, .. } if message.digest() == *after => entry.member.take(),
            _ => None,
        }
    }

    /// Keeps an answer, and what the client needs for the next one.
    fn keep(&self, task: &Task, client: &ClientId, answer: Outcome, member: Option<Member>, late: Instant) {
        let mut entries = self.lock();
        let now = Instant::now();
        entries.retain(|_, entry| entry.expires > now);
        let entry = Entry { task: task.task.clone(), answer, member, expires: late + KEPT };
        entries.insert((task.run.clone(), client.clone()), entry);
    }
}

/// What training came to, for a secure round.
pub(crate) struct ToSecure {
    pub adapter: Arc<Vec<f32>>,
    pub beginning: Beginning,
    pub weight: u64,
    pub figures: SecureTrained,
}

impl Workshop {
    /// What this task was answered with, where it is one of secure aggregation and comes again.
    pub fn secured_before(&self, Assignment { client, task, .. }: &Assignment<'_>) -> Option<Outcome> {
        self.secure.said(task, &client.id)
    }

    /// Whether the client may do a task: one that was told to take part in secure aggregation alone sends nothing else.
    pub fn may(&self, task: &Task) -> Result<(), Failure> {
        match &task.work {
            Work::Train { secure: None, .. } if self.identities.only_secure() => Err(Failure::new(
                "the client takes part in secure aggregation alone: add [secure_aggregation] to the run, or start its \
                 worker without --require-secure-aggregation",
            )),
            _ => Ok(()),
        }
    }

    /// The answer to the first stage: the client has trained, and gives its keys.
    pub async fn advertised(
        &self,
        assignment: &Assignment<'_>,
        params: &Payload,
        trained: ToSecure,
        fetched: &mut Vec<Transfer>,
    ) -> Result<Outcome, Failure> {
        let Assignment { client, task, deadline, .. } = assignment;
        let params = self.params(assignment, params, fetched).await?;
        let session = session(task, &params)?;
        self.identities.check(&session)?;
        let ToSecure { adapter, beginning, weight, figures } = trained;
        let (name, identity) = (client.id.to_string(), self.identities.of(&client.id)?);
        let (member, message) = blocking(move || {
            let update = difference(&beginning, &adapter);
            if update.len() + 1 != session.words() {
                return Err(Failure::new(format!(
                    "the secure aggregation is of {} values, the adapter has {}",
                    session.words() - 1,
                    update.len()
                )));
            }
            let weight = u32::try_from(weight).map_err(Failure::new)?;
            let client =
                Client::new(session.clone(), &name, identity, &mut random()?).map_err(Failure::new)?;
            let message = client.advertise().encode().map_err(Failure::new)?;
            Ok((Member { session, client, update: Some(Arc::new(update)), weight }, message))
        })
        .await?;
        let message = Payload::inline(message);
        let answer = Outcome::Secured { stage: SecureStage::Advertise, message, trained: Some(figures) };
        self.secure.keep(task, &client.id, answer.clone(), Some(member), *deadline);
        Ok(answer)
    }

    /// The answer to a later stage.
    pub async fn secured(
        &self,
        assignment: &Assignment<'_>,
        (stage, after, request): (SecureStage, &Digest, &Payload),
        fetched: &mut Vec<Transfer>,
    ) -> Result<Outcome, Failure> {
        let Assignment { client, task, deadline, .. } = assignment;
        let Payload::Message { data, digest } = request else {
            return Err(Failure::new("the request of secure aggregation is not in its task"));
        };
        if Digest::of(data) != *digest {
            return Err(Failure::new(
                "the request of secure aggregation does not have the digest it declares",
            ));
        }
        let Some(member) = self.secure.take(task, &client.id, after) else {
            return Err(Failure::new(format!(
                "client {} lost its secrets of this round: its worker was started again, or it has left the round",
                client.id
            )));
        };
        let (data, name) = (data.clone(), client.id.clone());
        let done = blocking(move || Ok(said(member, stage, &data, &name))).await?;
        let (message, member) = done?;
        // Only a masked update is as large as an adapter.
        let fits = stage != SecureStage::Mask || self.fits(message.len());
        let message = self.payload(assignment, message, fits, fetched).await?;
        let answer = Outcome::Secured { stage, message, trained: None };
        let member = (stage != SecureStage::Unmask).then_some(member);
        self.secure.keep(task, &client.id, answer.clone(), member, *deadline);
        Ok(answer)
    }

    async fn params(
        &self,
        Assignment { deadline, .. }: &Assignment<'_>,
        params: &Payload,
        fetched: &mut Vec<Transfer>,
    ) -> Result<Bytes, Failure> {
        match params {
            Payload::Message { digest, data } if Digest::of(data) == *digest => Ok(data.clone()),
            Payload::Message { .. } => {
                Err(Failure::new("the parameters in the task do not have the digest they declare"))
            }
            Payload::Blob { digest, .. } => {
                let what = "fetching the parameters of secure aggregation";
                let get = retrying(what, *deadline, || self.bus.get_blob(digest, MOST_PARAMS));
                let (bytes, measured) = Box::pin(get).await.map_err(Failure::new)?;
                fetched.push(measured.transfer(Direction::Down, ByteKind::Control));
                Ok(bytes)
            }
        }
    }
}

/// The session of a task, whose parameters must be those of its run and round.
fn session(task: &Task, params: &[u8]) -> Result<Session, Failure> {
    let params = Params::decode(params).map_err(Failure::new)?;
    let name = format!("{}#{}", task.run, task.epoch);
    if params.run != name || params.round != task.round {
        return Err(Failure::new(format!(
            "the parameters of secure aggregation are those of round {} of {:?}, not of round {} of {name}",
            params.round, params.run, task.round
        )));
    }
    Session::new(params).map_err(Failure::new)
}

/// What the shared tensors have changed by.
fn difference(beginning: &Beginning, adapter: &[f32]) -> Vec<f32> {
    let (start, end) = (beginning.scope.split(&beginning.adapter).0, beginning.scope.split(adapter).0);
    end.iter().zip(start.iter()).map(|(end, start)| end - start).collect()
}

/// What the client says in a stage, if anything: with a refusal it leaves, and its secrets are wiped.
fn said(
    mut member: Member,
    stage: SecureStage,
    request: &[u8],
    name: &ClientId,
) -> Result<(Bytes, Member), Failure> {
    let Member { session, client, update, weight } = &mut member;
    let request = Request::decode(request, session).map_err(Failure::new)?;
    let message = match stage {
        SecureStage::Advertise => return Err(Failure::new("the first stage is part of training")),
        SecureStage::Share => client.share(&request, &mut random()?).map_err(Failure::new)?.encode(),
        SecureStage::Confirm => client.confirm(&request).map_err(Failure::new)?.encode(),
        SecureStage::Unmask => client.unmask(&request).map_err(Failure::new)?.encode(),
        SecureStage::Mask => {
            let values = update.take().ok_or_else(|| Failure::new("the update was sent before"))?;
            let encoding = session.params().encoding;
            let mut noise = noise(session)?;
            let mut add = |integers: &mut [i64]| noise.iter_mut().for_each(|noise| noise.add(integers));
            let (weight, add): (_, Option<Noise<'_>>) = match encoding.noise {
                0 => (*weight, None),
                _ => (1, Some(&mut add)),
            };
            let encoded = encoding.encode(&values, weight, Rounding::Nearest, add).map_err(Failure::new)?;
            // Beyond the bound of a private sum are only updates that its norm has scaled down.
            if encoded.clamped > 0 && encoding.noise == 0 {
                let (clamped, bound) = (encoded.clamped, encoding.bound);
                tracing::warn!(client = %name, clamped, bound, "values of the update are beyond secure_aggregation.bound");
            }
            client.mask(&request, encoded).map_err(Failure::new)?.message().encode()
        }
    };
    Ok((message.map_err(Failure::new)?.into(), member))
}

/// The client's part of the noise that hides every client in the sum, where the sum is private.
struct ClientNoise {
    stream: NoiseStream,
    scale: Scale,
}

impl ClientNoise {
    fn add(&mut self, integers: &mut [i64]) {
        integers.iter_mut().for_each(|integer| *integer += self.stream.gaussian_with(self.scale));
    }
}

/// Fresh for every session: it goes into one answer, which is given again as it is.
fn noise(session: &Session) -> Result<Option<ClientNoise>, Failure> {
    let sigma = session.params().encoding.noise;
    if sigma == 0 {
        return Ok(None);
    }
    let secret = NoiseSecret::random().map_err(Failure::new)?;
    let name = Digest::from_bytes(*session.id()).to_string();
    let stream = NoiseStream::new(&secret, &["fedpeft client noise 1", &name]);
    Ok(Some(ClientNoise { stream, scale: Scale::new(sigma).map_err(Failure::new)? }))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::new)?
}

/// The public half of an identity.
pub(crate) fn public(identity: &SigningKey) -> [u8; 32] {
    identity.verifying_key().to_bytes()
}
