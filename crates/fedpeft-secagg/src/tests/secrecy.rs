//! What a server with too few shares can do, and what masked updates look like.

use curve25519_dalek::Scalar;

use super::*;
use crate::{
    Answer,
    client::pair_sign,
    keys::{commitment, mask_secret, pair_mask, self_mask},
    shamir::Combiner,
    words::{Sign, Words},
};

const SIZE: usize = 7;
const THRESHOLD: usize = 5;

/// A server that has gone through a round with all members in the sum, the packed masked updates, and the shares that a
/// number of members have given.
struct Greedy {
    federation: Federation,
    masked: Vec<Words>,
    /// `shares[holder][owner]`.
    shares: Vec<Vec<Scalar>>,
}

fn greedy(given: usize) -> Greedy {
    let mut federation = Federation::new(session(SIZE, complete(SIZE, THRESHOLD as u32), 600), 5);
    federation.run(Stage::Confirm, |_| None).unwrap();
    let bits = federation.session.params().encoding.bits;
    let mut masked = Vec::new();
    for message in &federation.log {
        if let Answer::Masked(packed) = Message::decode(message, &federation.session).unwrap().answer {
            masked.push(Words::zeros(bits, federation.session.words()));
            assert!(masked.last_mut().unwrap().add_packed(&packed));
        }
    }
    for member in 0..given {
        federation.step(member).unwrap();
    }
    let scalar = |bytes: &[u8; 32]| Scalar::from_canonical_bytes(*bytes).unwrap();
    let shares = (0..given)
        .map(|holder| federation.server.members[holder].shares.iter().map(scalar).collect())
        .collect();
    Greedy { federation, masked, shares }
}

impl Greedy {
    /// Everything that a server can make of the shares of `owner`: each subset of them combined, and each by itself.
    fn guesses(&self, owner: usize) -> Vec<Scalar> {
        let holders = self.shares.len();
        let mut guesses: Vec<Scalar> = self.shares.iter().map(|shares| shares[owner]).collect();
        for subset in 1u32..1 << holders {
            let chosen: Vec<usize> = (0..holders).filter(|holder| subset >> holder & 1 == 1).collect();
            let combiner = Combiner::new(chosen.iter().map(|holder| *holder as Member).collect());
            guesses.push(*combiner.combine(chosen.iter().map(|holder| &self.shares[*holder][owner])));
        }
        guesses
    }

    /// Whether a guess is one of the secrets of `owner`, as far as a server can tell.
    fn right(&self, owner: usize, guess: &Scalar) -> bool {
        let (session, record) = (&self.federation.session, &self.federation.server.members[owner]);
        let public = |secret| x25519_dalek::PublicKey::from(&secret).to_bytes();
        commitment(session, owner as Member, guess).unwrap() == record.commitment
            || public(mask_secret(session, owner as Member, guess).unwrap()) == record.keys.unwrap().mask
    }
}

#[test]
fn with_one_share_too_few_nothing_is_unmasked() {
    let mut greedy = greedy(THRESHOLD - 1);
    let refused = greedy.federation.server.close();
    assert_eq!(
        refused,
        Err(ServerError::TooFew { stage: Stage::Unmask, have: THRESHOLD - 1, need: THRESHOLD })
    );
    // A server that goes on nevertheless is told for whom it lacks shares.
    let answered = greedy.federation.server.answered(Stage::Unmask);
    greedy.federation.server.closed.push(answered);
    let error = greedy.federation.sum();
    let (have, need) = (THRESHOLD - 1, THRESHOLD);
    assert_eq!(error, Err(ServerError::BelowThreshold { client: name(0), have, need }));
    // A server that combines what it has by itself finds no secret of anybody, and whatever it takes for one gives neither an
    // update nor their sum.
    let sum: Vec<i64> = greedy.federation.expected();
    let mut total = greedy.federation.server.sum.clone();
    for owner in 0..SIZE {
        for guess in greedy.guesses(owner) {
            assert!(!greedy.right(owner, &guess));
            let key = self_mask(&greedy.federation.session, owner as Member, &guess).unwrap();
            for (words, plain) in
                [(&mut greedy.masked[owner], &greedy.federation.updates[owner]), (&mut total, &sum)]
            {
                words.mask(&key, Sign::Subtract).unwrap();
                let equal = words.integers().zip(plain).filter(|(word, plain)| word == *plain).count();
                assert!(equal <= 1, "{equal} of 601 words are plain");
                words.mask(&key, Sign::Add).unwrap();
            }
        }
    }
}

/// The test above is no test of a server that could never succeed: with one share more, it does.
#[test]
fn with_the_threshold_the_sum_is_unmasked_and_no_update() {
    let greedy = greedy(THRESHOLD);
    let mut total = greedy.federation.server.sum.clone();
    for owner in 0..SIZE {
        let right: Vec<_> =
            greedy.guesses(owner).into_iter().filter(|guess| greedy.right(owner, guess)).collect();
        assert_eq!(right.len(), 1);
        let key = self_mask(&greedy.federation.session, owner as Member, &right[0]).unwrap();
        total.mask(&key, Sign::Subtract).unwrap();
        // One update is still under the masks of pairs.
        let mut single = greedy.masked[owner].clone();
        single.mask(&key, Sign::Subtract).unwrap();
        let equal =
            single.integers().zip(&greedy.federation.updates[owner]).filter(|(word, plain)| word == *plain);
        assert!(equal.count() <= 1);
    }
    assert_eq!(total.integers().collect::<Vec<_>>(), greedy.federation.expected());
}

/// Corrupt holders give the server both kinds of shares; honest ones, whom it tells two stories with forged signatures, one
/// kind each. With as many corrupt ones as are tolerated, however it splits the honest ones, it never has both secrets
/// of the victim; with one more, it has.
#[test]
fn tolerated_corrupt_holders_do_not_get_both_secrets() {
    let mut federation = Federation::new(session(SIZE, complete(SIZE, THRESHOLD as u32), 8), 5);
    federation.run(Stage::Mask, |_| None).unwrap();
    let (victim, session, mut shares) = (0, federation.session.clone(), Vec::new());
    assert_eq!(session.tolerated(), 2);
    for client in &federation.clients {
        let crate::client::Progress::Masked { held, .. } = &client.progress else { panic!() };
        shares.push(held[victim].1.clone());
    }
    let record = &federation.server.members[victim];
    let combine = |shares: Vec<(Member, &Scalar)>| {
        let combiner = Combiner::new(shares.iter().map(|(holder, _)| *holder).collect());
        *combiner.combine(shares.iter().map(|(_, share)| *share))
    };
    let both = |corrupt: usize, told_it_survived: usize| {
        let honest = SIZE - corrupt;
        let own = (0..SIZE).filter(|holder| *holder < told_it_survived || *holder >= honest);
        let mask = (0..SIZE).filter(|holder| *holder >= told_it_survived);
        let own = combine(own.map(|holder| (holder as Member, &*shares[holder].self_seed)).collect());
        let mask = combine(mask.map(|holder| (holder as Member, &*shares[holder].mask_seed)).collect());
        let public = x25519_dalek::PublicKey::from(&mask_secret(&session, victim as Member, &mask).unwrap())
            .to_bytes();
        let has_own = commitment(&session, victim as Member, &own).unwrap() == record.commitment;
        has_own && public == record.keys.unwrap().mask
    };
    assert!(!(0..=SIZE - 2).any(|told| both(2, told)));
    assert!((0..=SIZE - 3).any(|told| both(3, told)));
}

/// A server that knows all but one pairwise mask and the own mask of a member still sees noise: chi-squared of the words' bytes,
/// for updates of all zeros and of nothing but the largest value.
#[test]
fn a_masked_update_is_uniform_whatever_is_in_it() {
    for value in [0.0, 1.0, -1.0] {
        let encoding = Encoding { bits: 24, ..Encoding::fit(3, 1.0, 16, 1, 0).unwrap() };
        let params = Params::new("run", 3, cohort(3), complete(3, 2), 60_000, encoding);
        let mut federation = Federation::new(Session::new(params).unwrap(), 77);
        federation.run(Stage::Share, |_| None).unwrap();
        let update = encoding.encode(&vec![value; 60_000], 1, Rounding::Nearest, None).unwrap();
        let request = federation.server.request(0).unwrap().unwrap();
        let mut masked = federation.clients[0].mask(&request, update).unwrap().message().encode().unwrap();
        // Without the envelope, which is before it.
        let masked = masked.split_off(masked.len() - 180_003);
        for byte in 0..3 {
            let mut counts = [0f64; 256];
            masked.chunks_exact(3).for_each(|word| counts[usize::from(word[byte])] += 1.0);
            let expected = 60_001.0 / 256.0;
            let chi: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
            // 255 degrees of freedom: standard deviation 22.6; five of them.
            assert!((chi - 255.0).abs() < 113.0, "{chi} for byte {byte} of {value}");
        }
        // Neighbouring words are not alike either.
        let mut ones = [0u32; 24];
        for pair in masked.chunks_exact(6) {
            for (bit, ones) in ones.iter_mut().enumerate() {
                *ones += u32::from((pair[bit / 8] ^ pair[3 + bit / 8]) >> (bit % 8) & 1);
            }
        }
        // Binomial(30000, 1/2): standard deviation 87; five of them.
        assert!(ones.iter().all(|ones| ones.abs_diff(15_000) < 433), "{ones:?}");
    }
}

#[test]
fn masks_of_pairs_cancel() {
    let federation = Federation::new(session(3, complete(3, 2), 50), 2);
    let (session, clients) = (&federation.session, &federation.clients);
    let mut words = Words::zeros(24, 50);
    for me in 0..3 {
        for other in (0..3).filter(|other| *other != me) {
            let [one, two] = [me, other].map(|member| member as Member);
            let secret = mask_secret(session, one, &clients[me].seeds.mask_seed).unwrap();
            let key = pair_mask(session, one, two, &secret, &clients[other].keys.mask).unwrap();
            words.mask(&key, pair_sign(one, two)).unwrap();
            assert!(words.integers().filter(|word| *word == 0).count() < 3 || (me, other) == (2, 1));
        }
    }
    assert!(words.integers().all(|word| word == 0));
}
