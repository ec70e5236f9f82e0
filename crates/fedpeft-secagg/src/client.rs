//! A member's side: what it says at each stage, and what it refuses to say.
//!
//! Secrets are made anew for each session, live in memory and are wiped when the client is dropped. A client that
//! restarts has dropped out of the round.

mod checks;
mod refusal;

use std::collections::HashSet;

use curve25519_dalek::Scalar;
use ed25519_dalek::SigningKey;
use rand::CryptoRng;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

use checks::pieces;
pub use refusal::Refusal;

use crate::{
    encoding::Encoded,
    keys::{agree, commitment, mask_secret, pair_mask, self_mask},
    members::{Member, Members},
    message::{Answer, Ask, Message, Request, Stage, VERSION},
    params::Session,
    seal::{SEALED, Shares, Way},
    shamir,
    sign::{BUNDLE, PublicKeys, SIGNATURE, sign, survivors_text, verify},
    words::{Sign, Words},
};

/// One member in one session.
pub struct Client {
    session: Session,
    me: Member,
    identity: SigningKey,
    /// Who holds shares of this member's secrets, and whose this one holds: its neighbours and itself.
    holders: Vec<Member>,
    seal: StaticSecret,
    mask: StaticSecret,
    pub(crate) seeds: Shares,
    pub(crate) keys: PublicKeys,
    pub(crate) progress: Progress,
}

/// What was said so far. Nothing is taken back: who asks for another version of it is refused.
pub(crate) enum Progress {
    Advertised,
    Shared {
        advertised: Members,
        peers: Vec<Neighbour>,
        own: Shares,
    },
    Masked {
        sharers: Members,
        held: Vec<(Member, Shares)>,
        /// Who is in the sum, once that is signed.
        signed: Option<Members>,
    },
}

/// Another holder that sent keys.
pub(crate) struct Neighbour {
    member: Member,
    mask: [u8; 32],
    shared: SharedSecret,
}

/// A masked update: uniformly random to everybody who lacks the masks.
pub struct MaskedUpdate {
    session: [u8; 32],
    from: Member,
    words: Words,
}

impl MaskedUpdate {
    /// The message; words of 32 bits are borrowed from here.
    pub fn message(&self) -> Message<'_> {
        let answer = Answer::Masked(self.words.pack());
        Message { version: VERSION, session: self.session, from: self.from, answer }
    }
}

impl Client {
    /// Enters a session as `client`, with new secrets from `rng`.
    ///
    /// # Errors
    /// [`Refusal::NotInvited`] if the cohort does not have this client with this identity.
    pub fn new(
        session: Session,
        client: &str,
        identity: SigningKey,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Refusal> {
        let me = session
            .member(client)
            .filter(|me| session.identity(*me) == Some(&identity.verifying_key()))
            .ok_or_else(|| Refusal::NotInvited(client.to_owned()))?;
        let seed = |rng: &mut _| Zeroizing::new(Scalar::random(rng));
        let seeds = Shares { mask_seed: seed(rng), self_seed: seed(rng) };
        let mask = mask_secret(&session, me, &seeds.mask_seed)?;
        let seal = StaticSecret::random_from_rng(rng);
        let public = |secret| PublicKey::from(secret).to_bytes();
        let keys = PublicKeys::sign(&session, me, public(&seal), public(&mask), &identity);
        let holders = session.holders(me);
        Ok(Self { session, me, identity, holders, seal, mask, seeds, keys, progress: Progress::Advertised })
    }

    /// [`Stage::Advertise`]: this member's keys.
    pub fn advertise(&self) -> Message<'static> {
        self.message(Answer::Keys(self.keys.to_bytes()))
    }

    /// [`Stage::Share`]: this member's secrets, in encrypted shares for its neighbours.
    ///
    /// # Errors
    /// [`Refusal`]; the client is as it was.
    pub fn share(
        &mut self,
        request: &Request<'_>,
        rng: &mut impl CryptoRng,
    ) -> Result<Message<'static>, Refusal> {
        let (Progress::Advertised, Ask::Share { members, keys }) = (&self.progress, &request.ask) else {
            return Err(self.unexpected(Stage::Share));
        };
        self.check(request)?;
        let names = self.neighbours(members, None)?;
        let mut seen = HashSet::from([self.keys.seal, self.keys.mask]);
        let mut peers = Vec::with_capacity(names.len());
        for (member, keys) in names.iter().zip(pieces::<BUNDLE>(keys, names.len())?) {
            let (keys, client) = (PublicKeys::from_bytes(keys), || self.session.name(*member));
            if !keys.genuine(&self.session, *member) {
                return Err(Refusal::Signature { client: client(), what: "its keys" });
            }
            if !seen.insert(keys.seal) || !seen.insert(keys.mask) {
                return Err(Refusal::SameKeys(client()));
            }
            let shared =
                agree(&self.seal, &keys.seal).map_err(|error| Refusal::Peer { client: client(), error })?;
            peers.push(Neighbour { member: *member, mask: keys.mask, shared });
        }
        let holders: Vec<_> =
            self.holders.iter().copied().filter(|holder| members.contains(*holder)).collect();
        let mut split = |secret| shamir::split(secret, self.session.threshold(), &holders, rng);
        let (mask_seeds, self_seeds) = (split(&self.seeds.mask_seed), split(&self.seeds.self_seed));
        let shares = mask_seeds.into_iter().zip(self_seeds);
        let mut shares = shares.map(|(mask_seed, self_seed)| Shares { mask_seed, self_seed });
        let mut own = None;
        let mut sealed = Vec::with_capacity(peers.len() * SEALED);
        let mut others = peers.iter();
        for (holder, shares) in holders.iter().zip(&mut shares) {
            if *holder == self.me {
                own = Some(shares);
            } else if let Some(peer) = others.next() {
                let way = Way { session: &self.session, from: self.me, to: *holder };
                sealed.extend(way.seal(&peer.shared, &shares)?);
            }
        }
        let own = own.ok_or(Refusal::LeftOut)?;
        let commitment = commitment(&self.session, self.me, &self.seeds.self_seed)?;
        self.progress = Progress::Shared { advertised: members.clone(), peers, own };
        Ok(self.message(Answer::Shares { commitment, sealed: sealed.into() }))
    }

    /// [`Stage::Mask`]: this member's update under its masks.
    ///
    /// # Errors
    /// [`Refusal`]; the client is as it was, the update is gone.
    pub fn mask(&mut self, request: &Request<'_>, update: Encoded) -> Result<MaskedUpdate, Refusal> {
        let (Progress::Shared { advertised, peers, own }, Ask::Mask { members, sealed }) =
            (&self.progress, &request.ask)
        else {
            return Err(self.unexpected(Stage::Mask));
        };
        self.check(request)?;
        let Encoded { mut words, .. } = update;
        let (expected, bits) = (self.session.words(), self.session.params().encoding.bits);
        if words.len() != expected || words.bits() != bits {
            return Err(Refusal::Update { values: words.len().saturating_sub(1), expected: expected - 1 });
        }
        let senders = self.neighbours(members, Some(advertised))?;
        let senders = peers.iter().filter(|peer| senders.contains(&peer.member));
        let count = senders.clone().count();
        let mut held = vec![(self.me, own.clone())];
        let mut masks = vec![(self_mask(&self.session, self.me, &self.seeds.self_seed)?, Sign::Add)];
        for (peer, sealed) in senders.zip(pieces::<SEALED>(sealed, count)?) {
            let blamed = |error| Refusal::Peer { client: self.session.name(peer.member), error };
            let way = Way { session: &self.session, from: peer.member, to: self.me };
            held.push((peer.member, way.open(&peer.shared, sealed).map_err(blamed)?));
            let key =
                pair_mask(&self.session, self.me, peer.member, &self.mask, &peer.mask).map_err(blamed)?;
            masks.push((key, pair_sign(self.me, peer.member)));
        }
        for (key, sign) in &masks {
            words.mask(key, *sign)?;
        }
        held.sort_unstable_by_key(|(member, _)| *member);
        self.progress = Progress::Masked { sharers: members.clone(), held, signed: None };
        Ok(MaskedUpdate { session: *self.session.id(), from: self.me, words })
    }

    /// [`Stage::Confirm`]: this member's signature of who is in the sum. Asked again, it signs the same again, and
    /// nothing else.
    ///
    /// # Errors
    /// [`Refusal`]; the client is as it was.
    pub fn confirm(&mut self, request: &Request<'_>) -> Result<Message<'static>, Refusal> {
        let Ask::Confirm { members } = &request.ask else { return Err(self.unexpected(Stage::Confirm)) };
        let Progress::Masked { sharers, signed, .. } = &self.progress else {
            return Err(self.unexpected(Stage::Confirm));
        };
        self.check(request)?;
        match signed {
            None => self.neighbours(members, Some(sharers)).map(|_| ())?,
            Some(signed) if signed == members => {}
            Some(_) => return Err(Refusal::OtherSurvivors),
        }
        let signature = sign(&self.identity, &survivors_text(&self.session, sharers, members));
        if let Progress::Masked { signed, .. } = &mut self.progress {
            *signed = Some(members.clone());
        }
        Ok(self.message(Answer::Confirmed(signature)))
    }

    /// [`Stage::Unmask`]: for each member whose holder this one is, one share: of the seed of its own mask if it is in the
    /// sum, of its mask secret if not. Which of them is settled by what this member signed; that the server asks the
    /// others the same is shown by their signatures.
    ///
    /// # Errors
    /// [`Refusal`]; the client is as it was.
    pub fn unmask(&self, request: &Request<'_>) -> Result<Message<'static>, Refusal> {
        let (
            Progress::Masked { sharers, held, signed: Some(survivors) },
            Ask::Unmask { members, signatures },
        ) = (&self.progress, &request.ask)
        else {
            return Err(self.unexpected(Stage::Unmask));
        };
        self.check(request)?;
        if !members.within(survivors) {
            return Err(Refusal::NotThere { client: self.first_outside(members, survivors) });
        }
        let text = survivors_text(&self.session, sharers, survivors);
        let signers: Vec<_> = self.others(members).collect();
        self.enough_holders(signers.len() + 1)?;
        for (member, signature) in signers.iter().zip(pieces::<SIGNATURE>(signatures, signers.len())?) {
            if !verify(&self.session, *member, &text, signature) {
                return Err(Refusal::Signature {
                    client: self.session.name(*member),
                    what: "who is in the sum",
                });
            }
        }
        let share = |(member, shares): &(Member, Shares)| match survivors.contains(*member) {
            true => shares.self_seed.to_bytes(),
            false => shares.mask_seed.to_bytes(),
        };
        let shares: Vec<u8> = held.iter().flat_map(share).collect();
        Ok(self.message(Answer::Unmasked(shares.into())))
    }

    fn message(&self, answer: Answer<'static>) -> Message<'static> {
        Message { version: VERSION, session: *self.session.id(), from: self.me, answer }
    }
}

/// Of two members, the one that comes first adds their mask.
pub(crate) fn pair_sign(me: Member, other: Member) -> Sign {
    if me < other { Sign::Add } else { Sign::Subtract }
}
