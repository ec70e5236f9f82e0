//! Servers and clients that lie: what clients refuse, and what the server finds out.

use super::*;
use crate::{Answer, Ask, CryptoError, Members, VERSION, seal::SEALED, sign::BUNDLE};

fn federation() -> Federation {
    Federation::new(session(7, complete(7, 5), 8), 1)
}

fn request(federation: &Federation, ask: Ask<'_>) -> Vec<u8> {
    Request { version: VERSION, session: *federation.session.id(), ask }.encode().unwrap()
}

fn confirm(federation: &Federation, members: impl IntoIterator<Item = Member>) -> Vec<u8> {
    request(federation, Ask::Confirm { members: Members::of(7, members) })
}

/// The server's request to a member, changed.
fn changed(federation: &Federation, member: Member, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut request = federation.server.request(member).unwrap().unwrap();
    match &mut request.ask {
        Ask::Share { keys: bytes, .. }
        | Ask::Mask { sealed: bytes, .. }
        | Ask::Unmask { signatures: bytes, .. } => {
            change(bytes.to_mut());
        }
        Ask::Confirm { .. } => {}
    }
    request.encode().unwrap()
}

#[test]
fn a_server_that_asks_for_both_kinds_of_shares_is_refused() {
    let mut federation = federation();
    federation.run(Stage::Mask, |_| None).unwrap();
    // Member 6 is in the sum, says the server; then it says that it is not.
    let (with, without) = (confirm(&federation, 0..7), confirm(&federation, 0..6));
    let signed = federation.answer(0, Some(&with)).unwrap();
    assert_eq!(federation.answer(0, Some(&without)), Err(Refusal::OtherSurvivors));
    // The same question has the same answer.
    assert_eq!(federation.answer(0, Some(&with)), Ok(signed));
    // Even with genuine signatures of everybody else under the other story.
    let mut signatures = Vec::new();
    for member in 1..6 {
        let answer = federation.answer(member, Some(&without)).unwrap();
        let Answer::Confirmed(signature) = Message::decode(&answer, &federation.session).unwrap().answer
        else {
            panic!()
        };
        signatures.extend(signature);
    }
    let ask = Ask::Unmask { members: Members::of(7, 1..6), signatures: signatures.into() };
    let refused = federation.answer(0, Some(&request(&federation, ask)));
    assert_eq!(refused, Err(Refusal::Signature { client: name(1), what: "who is in the sum" }));
}

#[test]
fn a_server_that_tells_two_stories_gets_no_share() {
    let mut federation = federation();
    federation.run(Stage::Mask, |_| None).unwrap();
    let stories = [confirm(&federation, 0..7), confirm(&federation, 0..6)];
    let mut signatures = [Vec::new(), Vec::new()];
    for member in 0..6 {
        let story = usize::from(member >= 3);
        let answer = federation.answer(member, Some(&stories[story])).unwrap();
        let Answer::Confirmed(signature) = Message::decode(&answer, &federation.session).unwrap().answer
        else {
            panic!()
        };
        signatures[story].push((member as Member, signature));
    }
    for member in 0..6usize {
        // Whatever it passes on: those of one story are too few, those of both do not all fit.
        let story = &signatures[usize::from(member >= 3)];
        for shown in [story.clone(), signatures.concat()] {
            let members = Members::of(7, shown.iter().map(|(signer, _)| *signer));
            let bytes =
                shown.iter().filter(|(signer, _)| *signer as usize != member).flat_map(|(_, s)| *s).collect();
            let ask = request(&federation, Ask::Unmask { members, signatures: bytes });
            let refused = federation.answer(member, Some(&ask)).unwrap_err();
            assert!(matches!(refused, Refusal::Holders { .. } | Refusal::Signature { .. }), "{refused}");
        }
    }
}

#[test]
fn sets_that_are_small_or_contradict_are_refused() {
    let mut federation = federation();
    federation.run(Stage::Share, |member| (member == 6).then_some(Stage::Share)).unwrap();
    (0..6).for_each(|member| {
        federation.step(member).unwrap();
    });
    let cases = [
        (confirm(&federation, 0..4), Refusal::Quorum { have: 4, need: 5 }),
        (confirm(&federation, 1..6), Refusal::LeftOut),
        // Member 6 never shared its secrets.
        (confirm(&federation, [0, 1, 2, 3, 6]), Refusal::NotThere { client: name(6) }),
    ];
    for (asked, refusal) in cases {
        assert_eq!(federation.answer(0, Some(&asked)), Err(refusal));
    }
    // None of it spoiled the client.
    assert!(federation.answer(0, Some(&confirm(&federation, 0..5))).is_ok());
}

#[test]
fn stages_out_of_order_are_refused() {
    let mut federation = federation();
    federation.run(Stage::Advertise, |_| None).unwrap();
    let share = changed(&federation, 0, |_| {});
    let confirm = confirm(&federation, 0..7);
    assert_eq!(
        federation.answer(0, Some(&confirm)),
        Err(Refusal::Stage { asked: Stage::Confirm, expects: Stage::Share })
    );
    federation.answer(0, Some(&share)).unwrap();
    // Secrets are shared once: two polynomials for one secret would be twice as many shares.
    assert_eq!(
        federation.answer(0, Some(&share)),
        Err(Refusal::Stage { asked: Stage::Share, expects: Stage::Mask })
    );
}

#[test]
fn keys_that_are_not_a_members_own_are_refused() {
    let mut federation = federation();
    federation.run(Stage::Advertise, |_| None).unwrap();
    let own = federation.server.members[0].keys.unwrap().to_bytes();
    let third = federation.server.members[3].keys.unwrap().to_bytes();
    let signature = |client| Refusal::Signature { client: name(client), what: "its keys" };
    type Change<'a> = Box<dyn Fn(&mut Vec<u8>) + 'a>;
    let cases: [(Change<'_>, Refusal); 6] = [
        (Box::new(|keys| keys[0] ^= 1), signature(1)),
        (Box::new(|keys| keys[BUNDLE + 40] ^= 1), signature(2)),
        (Box::new(|keys| keys[BUNDLE + 100] ^= 1), signature(2)),
        // A mirror, and one member in the place of another.
        (Box::new(|keys| keys[..BUNDLE].copy_from_slice(&own)), signature(1)),
        (Box::new(|keys| keys[..BUNDLE].copy_from_slice(&third)), signature(1)),
        (Box::new(|keys| keys.truncate(200)), Refusal::Length { got: 200, expected: 6 * BUNDLE }),
    ];
    for (change, refusal) in cases {
        let asked = changed(&federation, 0, change);
        assert_eq!(federation.answer(0, Some(&asked)), Err(refusal));
    }
    let honest = changed(&federation, 0, |_| {});
    assert!(federation.answer(0, Some(&honest)).is_ok());
}

#[test]
fn a_client_that_signs_keys_of_another_or_none_is_found_out() {
    let mut federation = federation();
    federation.run(Stage::Advertise, |_| None).unwrap();
    let stolen = federation.server.members[3].keys.unwrap();
    let signed = |seal, mask| {
        crate::sign::PublicKeys::sign(&federation.session, 1, seal, mask, &identity(1)).to_bytes()
    };
    let low = Refusal::Peer { client: name(1), error: CryptoError::Degenerate };
    for (keys, refusal) in [
        (signed(stolen.seal, [9; 32]), Refusal::SameKeys(name(3))),
        (signed([9; 32], stolen.mask), Refusal::SameKeys(name(3))),
        (signed([0; 32], [9; 32]), low),
    ] {
        let asked = changed(&federation, 0, |bytes| bytes[..BUNDLE].copy_from_slice(&keys));
        assert_eq!(federation.answer(0, Some(&asked)), Err(refusal));
    }
}

#[test]
fn ciphertexts_that_were_tampered_with_are_refused() {
    let mut federation = federation();
    federation.run(Stage::Share, |_| None).unwrap();
    let tampered = |client| Refusal::Peer { client: name(client), error: CryptoError::Open };
    let flip = |at: usize| move |sealed: &mut Vec<u8>| sealed[at] ^= 0x80;
    for (at, client) in [(0, 1), (SEALED - 1, 1), (5 * SEALED + 40, 6)] {
        let asked = changed(&federation, 0, flip(at));
        assert_eq!(federation.answer(0, Some(&asked)), Err(tampered(client)));
    }
    // Genuine ones in each other's place, and one that was meant for another holder.
    let swapped = changed(&federation, 0, |sealed| {
        let (one, two) = sealed.split_at_mut(SEALED);
        one.swap_with_slice(&mut two[..SEALED]);
    });
    assert_eq!(federation.answer(0, Some(&swapped)), Err(tampered(1)));
    let Ask::Mask { sealed, .. } = federation.server.request(2).unwrap().unwrap().ask else { panic!() };
    let elsewhere =
        changed(&federation, 0, |bytes| bytes[..SEALED].copy_from_slice(&sealed[SEALED..2 * SEALED]));
    assert_eq!(federation.answer(0, Some(&elsewhere)), Err(tampered(1)));
    let honest = changed(&federation, 0, |_| {});
    assert!(federation.answer(0, Some(&honest)).is_ok());
}

#[test]
fn nothing_of_another_round_is_accepted() {
    let mut federation = federation();
    let params = Params { round: 4, ..federation.session.params().clone() };
    let other = Session::new(params).unwrap();
    assert_ne!(other.id(), federation.session.id());
    federation.run(Stage::Advertise, |_| None).unwrap();
    let mut request = federation.server.request(0).unwrap().unwrap();
    let mut client = Client::new(other.clone(), &name(0), identity(0), &mut federation.rng).unwrap();
    assert_eq!(client.share(&request, &mut federation.rng).err(), Some(Refusal::Session));
    // With the other round's name on them, the keys still say where they belong.
    request.session = *other.id();
    let refused = client.share(&request, &mut federation.rng).err();
    assert_eq!(refused, Some(Refusal::Signature { client: name(1), what: "its keys" }));
    let error = Server::new(other).take(&federation.clients[0].advertise());
    assert_eq!(error, Err(ServerError::Session { client: name(0) }));
}

#[test]
fn strangers_and_impostors_do_not_enter() {
    let mut federation = federation();
    let session = &federation.session;
    for (client, key) in [("somebody", identity(0)), (&*name(0), identity(1))] {
        let refused = Client::new(session.clone(), client, key, &mut federation.rng).err();
        assert_eq!(refused, Some(Refusal::NotInvited(client.to_owned())));
    }
    assert!(
        session
            .pinned(|client| session.member(client).map(|at| session.params().cohort[at as usize].identity))
            .is_ok()
    );
    let error = session.pinned(|client| {
        Some(if client == name(2) { [1; 32] } else { *session.identity(session.member(client)?)?.as_bytes() })
    });
    assert_eq!(error, Err(crate::ParamsError::NotPinned(name(2))));
}

#[test]
fn signatures_that_are_not_of_what_was_asked_are_not_taken() {
    let mut federation = federation();
    let mut keys = federation.clients[0].advertise();
    let Answer::Keys(bytes) = &mut keys.answer else { panic!() };
    bytes[3] ^= 1;
    let stage = Stage::Advertise;
    assert_eq!(federation.server.take(&keys), Err(ServerError::Signature { client: name(0), stage }));
    federation.run(Stage::Mask, |_| None).unwrap();
    let other = confirm(&federation, 0..6);
    let signed = federation.answer(0, Some(&other)).unwrap();
    let stage = Stage::Confirm;
    assert_eq!(federation.send(signed), Err(ServerError::Signature { client: name(0), stage }));
}

#[test]
fn shares_that_are_made_up_are_found_out() {
    // Of a member in the sum, and of one that dropped out.
    for victim in [1, 2] {
        let mut federation = federation();
        let leaves = |member: usize| (member == 2).then_some(Stage::Mask);
        federation.run(Stage::Confirm, leaves).unwrap();
        for member in [0, 1, 3, 4, 5, 6] {
            let asked = federation.server.request(member as Member).unwrap().unwrap().encode().unwrap();
            let answer = federation.answer(member, Some(&asked)).unwrap();
            let mut message = Message::decode(&answer, &federation.session).unwrap();
            if let (3, Answer::Unmasked(shares)) = (member, &mut message.answer) {
                shares.to_mut()[32 * victim] ^= 1;
            }
            let answer = message.encode().unwrap();
            federation.send(answer).unwrap();
        }
        federation.server.close().unwrap();
        assert_eq!(federation.sum(), Err(ServerError::WrongShares { client: name(victim) }));
    }
}
