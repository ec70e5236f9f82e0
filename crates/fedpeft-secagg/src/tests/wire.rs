//! Bytes of any kind do no harm.

use proptest::prelude::*;

use super::*;
use crate::{Ask, Members, ParamsError, VERSION, WireError};

/// All messages and requests of a round.
fn round() -> (Federation, Vec<Vec<u8>>) {
    let mut federation = Federation::new(session(5, complete(5, 3), 9), 1);
    let mut requests = Vec::new();
    while let Some(stage) = federation.server.stage() {
        for member in 0..5 {
            if stage > Stage::Advertise {
                requests.push(federation.server.request(member).unwrap().unwrap().encode().unwrap());
            }
            federation.step(member as usize).unwrap();
        }
        federation.server.close().unwrap();
    }
    (federation, requests)
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let session = session(5, complete(5, 3), 9);
        let _ = Message::decode(&bytes, &session);
        let _ = Request::decode(&bytes, &session);
        let _ = Params::decode(&bytes).map(Session::new);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Genuine messages with some bytes changed go to a server and clients in every stage.
    #[test]
    fn changed_messages_are_refused_or_harmless(
        which: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        thread_local! { static ROUND: (Federation, Vec<Vec<u8>>) = round(); }
        let (session, mut message, mut request) = ROUND.with(|(federation, requests)| {
            (federation.session.clone(), which.get(&federation.log).clone(), which.get(requests).clone())
        });
        for (at, byte) in changes {
            let (place, other) = (at.index(message.len()), at.index(request.len()));
            message[place] = byte;
            request[other] = byte;
        }
        let mut federation = Federation::new(session.clone(), 1);
        for stage in Stage::ALL {
            if let Ok(message) = Message::decode(&message, &session) {
                let _ = federation.server.take(&message);
            }
            if Request::decode(&request, &session).is_ok() {
                let _ = federation.answer(0, Some(&request));
            }
            for member in 0..5 {
                let asked = federation.server.request(member).unwrap().map(|request| request.encode().unwrap());
                if (stage == Stage::Advertise || asked.is_some())
                    && let Ok(answer) = federation.answer(member as usize, asked.as_deref())
                {
                    let _ = federation.send(answer);
                }
            }
            if federation.server.close().is_err() {
                break;
            }
        }
        let _ = federation.sum();
    }
}

#[test]
fn decoding_borrows_what_is_large() {
    let (federation, _) = round();
    let masked = &federation.log[10];
    let message = Message::decode(masked, &federation.session).unwrap();
    assert!(matches!(message.answer, crate::Answer::Masked(std::borrow::Cow::Borrowed(_))));
}

#[test]
fn what_is_no_message_of_the_session_is_named() {
    let (federation, requests) = round();
    let session = &federation.session;
    let limit = session.largest_message();
    assert!(federation.log.iter().chain(&requests).all(|message| message.len() <= limit));
    let large = vec![0; limit + 1];
    let error = Message::decode(&large, session);
    assert_eq!(error, Err(WireError::Size { got: limit + 1, limit }));
    let of = |change: fn(&mut Message<'_>)| {
        let mut message = federation.clients[1].advertise();
        change(&mut message);
        message.encode().unwrap()
    };
    let error = |bytes: &[u8]| Message::decode(bytes, session).unwrap_err();
    assert_eq!(error(&of(|message| message.version = 2)), WireError::Version(2));
    assert_eq!(error(&of(|message| message.session[0] ^= 1)), WireError::Session);
    assert_eq!(error(&of(|message| message.from = 5)), WireError::Member(5));
    let ask = Ask::Confirm { members: Members::of(16, [9]) };
    let request = Request { version: VERSION, session: *session.id(), ask }.encode().unwrap();
    assert_eq!(Request::decode(&request, session), Err(WireError::Members));
}

#[test]
fn parameters_travel_and_are_checked() {
    let good = session(6, complete(6, 4), 9).params().clone();
    let back = Params::decode(&good.encode().unwrap()).unwrap();
    assert_eq!(Session::new(back).unwrap().id(), Session::new(good.clone()).unwrap().id());
    type Change = fn(&mut Params);
    let cases: [(Change, ParamsError); 16] = [
        (|params| params.cohort.truncate(1), ParamsError::Cohort(1)),
        (|params| params.run.clear(), ParamsError::Name(String::new())),
        (|params| params.cohort.swap(1, 2), ParamsError::Order(name(1))),
        (|params| params.cohort[3].client = name(2), ParamsError::Order(name(2))),
        (|params| params.cohort[3].identity = params.cohort[2].identity, ParamsError::Identity(name(3))),
        // The neutral element, under which one signature fits every message.
        (
            |params| params.cohort[3].identity = std::array::from_fn(|at| u8::from(at == 0)),
            ParamsError::Identity(name(3)),
        ),
        (|params| params.threshold = 3, ParamsError::Threshold { threshold: 3, holders: 6 }),
        (|params| params.threshold = 7, ParamsError::Threshold { threshold: 7, holders: 6 }),
        (|params| params.quorum = 3, ParamsError::Quorum { quorum: 3, cohort: 6 }),
        (|params| params.quorum = 7, ParamsError::Quorum { quorum: 7, cohort: 6 }),
        (|params| params.values = 0, ParamsError::Values(0)),
        (|params| params.graph = Graph::Sparse { degree: 3 }, ParamsError::Degree { degree: 3, cohort: 6 }),
        (|params| params.graph = Graph::Sparse { degree: 6 }, ParamsError::Degree { degree: 6, cohort: 6 }),
        (|params| params.encoding.bits = 57, ParamsError::Bits { bits: 57 }),
        (|params| params.encoding.bits = 26, ParamsError::Wraps { cohort: 6, needed: 27, bits: 26 }),
        (|params| params.encoding.norm = Some(-1.0), ParamsError::Bound(-1.0)),
    ];
    for (change, error) in cases {
        let mut params = good.clone();
        change(&mut params);
        assert_eq!(Session::new(params).err(), Some(error));
    }
}

/// Whatever is changed, the session is another one.
#[test]
fn everything_agreed_on_is_in_the_sessions_name() {
    let good = session(6, complete(6, 4), 9).params().clone();
    type Change = fn(&mut Params);
    let changes: [Change; 15] = [
        |_| {},
        |params| params.run.push('x'),
        |params| params.round += 1,
        |params| params.cohort.truncate(5),
        |params| params.cohort[5].client.push('x'),
        |params| params.cohort[5].identity = identity(9).verifying_key().to_bytes(),
        |params| params.graph = Graph::Sparse { degree: 4 },
        |params| params.threshold = 5,
        |params| params.quorum = 6,
        |params| params.values += 1,
        |params| params.encoding.bits += 1,
        |params| params.encoding.bound = 2.0,
        |params| params.encoding.norm = Some(1.0),
        |params| params.encoding.headroom = 1,
        |params| params.encoding = Encoding::private(6, 9, 1.0, 8, 1.0, 3).unwrap(),
    ];
    let ids: std::collections::HashSet<_> = changes
        .iter()
        .map(|change| {
            let mut params = good.clone();
            change(&mut params);
            params.quorum = params.quorum.max(params.threshold);
            *Session::new(params).unwrap().id()
        })
        .collect();
    assert_eq!(ids.len(), changes.len());
}
