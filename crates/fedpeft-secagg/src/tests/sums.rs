//! The sum is that of the integers, whoever drops out and when.

use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::{Closed, Members};

/// Who leaves where: at most `most` members, anywhere.
fn leavers(size: usize, most: usize) -> impl Strategy<Value = Vec<Option<Stage>>> {
    let leaver = (0..size, prop::sample::select(Stage::ALL.to_vec()));
    prop::collection::vec(leaver, 0..=most).prop_map(move |leavers| {
        let mut leaves = vec![None; size];
        leavers.into_iter().for_each(|(member, stage)| leaves[member] = Some(stage));
        leaves
    })
}

fn cohorts() -> impl Strategy<Value = (usize, Vec<Option<Stage>>)> {
    // A majority must stay.
    (3usize..=30).prop_flat_map(|size| (Just(size), leavers(size, (size - 1) / 2)))
}

/// Of each member noise that the test can tell from the update: what is masked is the noised integer.
#[test]
fn a_private_sum_has_everybodys_noise() {
    let plan = complete(6, 4);
    let encoding = Encoding::private(6, 40, 1.0, 10, 2.0, plan.honest(6)).unwrap();
    let session = Session::new(Params::new("run", 3, cohort(6), plan, 40, encoding)).unwrap();
    assert!((2.0..2.01).contains(&session.noise_multiplier()), "{}", session.noise_multiplier());
    let mut federation = Federation::new(session, 5);
    federation.run(Stage::Unmask, |member| (member == 2).then_some(Stage::Unmask)).unwrap();
    let sum = federation.sum().unwrap();
    assert_eq!(sum, federation.expected());
    // Values of at most a sixth of 2^10 integers each, and six times the noise of one.
    let noise = i64::try_from(encoding.noise).unwrap();
    assert!(sum[..40].iter().all(|value| (value - 6 * noise).abs() <= 6 << 10), "{sum:?}");
    assert_eq!(sum[40], 6);
    let update = [0.1; 40];
    let bare = encoding.encode(&update, 1, Rounding::Nearest, None).err().unwrap();
    assert!(bare.to_string().contains("none is given"), "{bare}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn complete_graph((size, leaves) in cohorts(), seed: u64) {
        let mut federation = Federation::new(session(size, complete(size, size as u32 / 2 + 1), 40), seed);
        federation.run(Stage::Unmask, |member| leaves[member]).unwrap();
        prop_assert_eq!(federation.sum().unwrap(), federation.expected());
    }

    #[test]
    fn sparse_graph(leaves in leavers(30, 5), seed: u64) {
        // 11 holders each: 6 are left of them.
        let plan = Plan { graph: Graph::Sparse { degree: 10 }, threshold: 6, quorum: 20 };
        let mut federation = Federation::new(session(30, plan, 40), seed);
        federation.run(Stage::Unmask, |member| leaves[member]).unwrap();
        prop_assert_eq!(federation.sum().unwrap(), federation.expected());
    }

    /// A server that starts again from what was decided and said, said in any order and twice, is the same server.
    #[test]
    fn any_order_makes_the_same_server((size, leaves) in cohorts(), seed: u64, until in 1usize..=5) {
        let session = session(size, complete(size, size as u32 / 2 + 1), 40);
        let mut federation = Federation::new(session.clone(), seed);
        let leaves = |member: usize| leaves[member];
        federation.run(Stage::ALL[until - 1], leaves).unwrap();
        let mut again = Server::new(session.clone());
        let mut log = [&federation.log[..], &federation.log[..]].concat();
        for at in (1..log.len()).rev() {
            log.swap(at, (federation.rng.next_u64() % (at as u64 + 1)) as usize);
        }
        for stage in &Stage::ALL[..until] {
            again.restore(&Closed { stage: *stage, members: federation.server.answered(*stage) }).unwrap();
        }
        log.iter().for_each(|message| {
            again.take(&Message::decode(message, &session).unwrap()).unwrap();
        });
        for member in 0..size as Member {
            prop_assert_eq!(again.request(member).unwrap(), federation.server.request(member).unwrap());
        }
        federation.server = again;
        federation.run(Stage::Unmask, leaves).unwrap();
        prop_assert_eq!(federation.sum().unwrap(), federation.expected());
    }
}

#[test]
fn wide_and_unpadded_words() {
    for precision in [6, 16, 17, 23, 40] {
        let encoding = Encoding::fit(7, 1.0, precision, 100, 0).unwrap();
        let params = Params::new("run", 1, cohort(7), complete(7, 4), 3001, encoding);
        let mut federation = Federation::new(Session::new(params).unwrap(), 1);
        federation.run(Stage::Unmask, |member| (member == 2).then_some(Stage::Mask)).unwrap();
        assert_eq!(federation.sum().unwrap(), federation.expected(), "{} bits", encoding.bits);
    }
}

#[test]
fn complete_and_sparse_sums_are_the_same_bytes() {
    let leaves = |member: usize| match member {
        3 => Some(Stage::Mask),
        9 => Some(Stage::Unmask),
        _ => None,
    };
    let sum = |plan: Plan| {
        let mut federation = Federation::new(session(20, plan, 500), 9);
        // The same rounding for both.
        federation.rng = ChaCha20Rng::seed_from_u64(1);
        federation.run(Stage::Share, leaves).unwrap();
        federation.rng = ChaCha20Rng::seed_from_u64(1);
        federation.run(Stage::Unmask, leaves).unwrap();
        federation.server.sum(std::num::NonZero::<usize>::MIN).unwrap()
    };
    let complete = sum(complete(20, 11));
    assert_eq!(complete, sum(Plan { graph: Graph::Sparse { degree: 12 }, threshold: 7, quorum: 11 }));
    assert_eq!(complete.mean().len(), 500);
}

#[test]
fn too_few_at_any_stage_end_the_round_by_name() {
    for stage in Stage::ALL {
        let mut federation = Federation::new(session(9, complete(9, 5), 4), 1);
        let error = federation.run(Stage::Unmask, |member| (member < 5).then_some(stage));
        let need = 5;
        assert_eq!(error, Err(ServerError::TooFew { stage, have: 4, need }));
    }
}

#[test]
fn a_neighbourhood_that_leaves_is_missed_by_name() {
    let plan = Plan { graph: Graph::Sparse { degree: 4 }, threshold: 4, quorum: 11 };
    let session = session(20, plan, 4);
    let gone = session.holders(0);
    let mut federation = Federation::new(session, 1);
    federation.run(Stage::Confirm, |_| None).unwrap();
    federation
        .run(Stage::Unmask, |member| gone[..2].contains(&(member as Member)).then_some(Stage::Unmask))
        .unwrap();
    let error = federation.sum().unwrap_err();
    assert!(matches!(error, ServerError::BelowThreshold { have: 3, need: 4, .. }), "{error}");
}

#[test]
fn what_was_not_asked_is_not_taken() {
    let mut federation = Federation::new(session(5, complete(5, 3), 4), 1);
    let early = federation.clients[0].advertise().encode().unwrap();
    federation.run(Stage::Advertise, |member| (member == 4).then_some(Stage::Advertise)).unwrap();
    assert_eq!(federation.send(early), Ok(Taken::Repeated));
    let late = federation.clients[4].advertise().encode().unwrap();
    let client = || name(4);
    assert_eq!(federation.send(late), Err(ServerError::Late { client: client(), stage: Stage::Advertise }));
    let masked = |packed: Vec<u8>, from, session: &Session| {
        let answer = crate::Answer::Masked(packed.into());
        Message { version: crate::VERSION, session: *session.id(), from, answer }.encode().unwrap()
    };
    let ahead = masked(vec![0; 20], 0, &federation.session);
    let error = federation.send(ahead);
    assert_eq!(error, Err(ServerError::NotAsked { client: name(0), stage: Stage::Mask }));
    federation.run(Stage::Share, |member| (member == 4).then_some(Stage::Share)).unwrap();
    let stranger = masked(vec![0; 20], 4, &federation.session);
    assert_eq!(
        federation.send(stranger),
        Err(ServerError::NotAsked { client: client(), stage: Stage::Mask })
    );
    let short = masked(vec![0; 9], 0, &federation.session);
    let error = federation.send(short).unwrap_err();
    assert!(matches!(error, ServerError::Length { got: 9, .. }), "{error}");
    federation.step(0).unwrap();
    // Five words of 26 bits.
    let other = masked(vec![1; 17], 0, &federation.session);
    assert_eq!(
        federation.send(other),
        Err(ServerError::Contradiction { client: name(0), stage: Stage::Mask })
    );
    // None of it left a trace.
    federation.server.answered(Stage::Mask).iter().for_each(|member| assert_eq!(member, 0));
    (1..4).for_each(|member| assert_eq!(federation.step(member), Ok(Taken::New)));
    federation.server.close().unwrap();
    federation.run(Stage::Unmask, |_| None).unwrap();
    assert_eq!(federation.sum().unwrap(), federation.expected());
}

#[test]
fn only_what_follows_is_restored() {
    let session = session(5, complete(5, 3), 4);
    let mut server = Server::new(session.clone());
    let closed =
        |stage, members: &[Member]| Closed { stage, members: Members::of(5, members.iter().copied()) };
    let error = |stage| Err(ServerError::Restore { stage });
    assert_eq!(server.restore(&closed(Stage::Share, &[0, 1, 2])), error(Stage::Share));
    assert_eq!(
        server.restore(&Closed { stage: Stage::Advertise, members: Members::none(90) }),
        error(Stage::Advertise)
    );
    server.restore(&closed(Stage::Advertise, &[0, 1, 2, 3])).unwrap();
    assert_eq!(server.restore(&closed(Stage::Share, &[0, 1, 4])), error(Stage::Share));
    // What was said before it has not been heard again.
    assert!(matches!(server.request(0), Err(ServerError::Incomplete { stage: Stage::Advertise, .. })));
    assert!(matches!(server.close(), Err(ServerError::Incomplete { stage: Stage::Advertise, .. })));
}
