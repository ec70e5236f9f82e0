use std::time::Duration;

use fedpeft_bus::{Bus, BusError, Place, Stale, Updates};
use fedpeft_protocol::{
    RunId,
    event::{AcceptedUpdate, Event, EventKind},
    round::{Outcome, Payload, Update},
    subject,
    wire::{Format, WireError},
};
use fedpeft_testkit::NatsServer;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{sleep, timeout};

use crate::{client_id, event, run_id, update};

/// Nothing more comes: what is published after the last expected message arrives next.
async fn is_next(updates: &mut Updates, client: &str) {
    assert_eq!(updates.next().await.client, client_id(client));
}

#[tokio::test]
async fn an_update_published_twice_is_stored_once() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    let mut updates = bus.updates(&run).await.unwrap();
    for _ in 0..2 {
        bus.publish_update(&run, 1, &client_id("a"), &update("t", 8)).await.unwrap();
    }
    bus.publish_update(&run, 1, &client_id("b"), &update("t", 8)).await.unwrap();
    let first = updates.next().await;
    assert_eq!((first.run, first.round, first.client), (run.clone(), 1, client_id("a")));
    assert_eq!(first.update.unwrap(), update("t", 8));
    is_next(&mut updates, "b").await;
}

/// The consumers of the stream of updates: their names, and how many messages each was given.
async fn consumers(server: &NatsServer) -> Vec<(String, u64)> {
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(subject::UPDATE_STREAM).await.unwrap();
    let listed: Vec<_> = stream.consumers().try_collect().await.unwrap();
    listed.into_iter().map(|info| (info.name, info.delivered.consumer_sequence)).collect()
}

#[tokio::test]
async fn of_large_updates_no_more_are_on_their_way_than_fit() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    for number in 0..12 {
        bus.publish_update(&run, 1, &client_id(&format!("c{number:02}")), &update("t", 8)).await.unwrap();
    }
    // Two of so many bytes are pulled ahead.
    let mut updates = bus.updates_of_size(&run, 300_000).await.unwrap();
    for read in 0..12 {
        if read % 4 == 0 {
            sleep(Duration::from_millis(300)).await;
            let given = consumers(&server).await.iter().map(|(_, given)| *given).sum::<u64>();
            // One more was taken off the connection, and is the next.
            assert!(given > read && given <= read + 1 + 2, "{given} of {read} read");
        }
        is_next(&mut updates, &format!("c{read:02}")).await;
    }
}

#[tokio::test]
async fn a_deleted_consumer_is_replaced_where_it_was() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    let mut updates = bus.updates(&run).await.unwrap();
    bus.publish_update(&run, 1, &client_id("a"), &update("t", 8)).await.unwrap();
    is_next(&mut updates, "a").await;
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let [(name, _)] = &consumers(&server).await[..] else { panic!("one consumer") };
    jetstream.delete_consumer_from_stream(name, subject::UPDATE_STREAM).await.unwrap();
    for client in ["b", "c"] {
        bus.publish_update(&run, 1, &client_id(client), &update("t", 8)).await.unwrap();
        timeout(Duration::from_secs(20), is_next(&mut updates, client)).await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_to_whom_nothing_comes_for_long_keeps_its_consumer() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    let mut updates = bus.updates(&run).await.unwrap();
    let before = consumers(&server).await;
    // Longer than a request for messages lives.
    assert!(timeout(Duration::from_secs(33), updates.next()).await.is_err());
    bus.publish_update(&run, 1, &client_id("a"), &update("t", 8)).await.unwrap();
    timeout(Duration::from_secs(20), is_next(&mut updates, "a")).await.unwrap();
    let after = consumers(&server).await;
    assert_eq!((&before[0].0, 1), (&after[0].0, after.len()));
}

#[tokio::test]
async fn an_update_that_says_anything_else_is_another() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let (run, client) = (run_id("r"), client_id("a"));
    let mut retrained = update("t", 8);
    if let Outcome::Trained { adapter, .. } = &mut retrained.outcome {
        *adapter = Payload::inline(vec![9; 8]);
    }
    let sent =
        [update("t", 8), update("t", 9), update("u", 8), Update { epoch: 7, ..update("t", 8) }, retrained];
    for update in &sent {
        bus.publish_update(&run, 1, &client, update).await.unwrap();
    }
    let mut updates = bus.updates(&run).await.unwrap();
    for update in sent {
        assert_eq!(updates.next().await.update.unwrap(), update);
    }
}

#[tokio::test]
async fn updates_that_were_accepted_together_are_told_one_by_one() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    let names = ["a", "b", "c"];
    let update =
        |name| AcceptedUpdate { client: client_id(name), examples: 3, loss: 0.5, seconds: 1.0, size: 9 };
    let kind = EventKind::UpdatesAccepted { round: 2, updates: names.map(update).to_vec() };
    bus.publish_event(&Event { kind, ..event(&run, 1) }).await.unwrap();
    bus.publish_event(&event(&run, 4)).await.unwrap();
    let (mut events, mut places) = (bus.events(Some(&run), true).await.unwrap(), Vec::new());
    for name in names {
        let AcceptedUpdate { client, examples, loss, seconds, size } = update(name);
        let kind = EventKind::UpdateAccepted { round: 2, client, examples, loss, seconds, size };
        assert_eq!(events.next().await.unwrap(), Event { kind, ..event(&run, 1) });
        places.push(events.place());
    }
    assert_eq!(events.next().await.unwrap(), event(&run, 4));
    places.push(events.place());
    assert!(places.is_sorted_by(|before, after| before < after));
}

#[tokio::test]
async fn updates_are_replayed_from_the_first_until_their_round_is_purged() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    for client in ["a", "b", "c"] {
        bus.publish_update(&run, 1, &client_id(client), &update("t", 100)).await.unwrap();
    }
    bus.publish_update(&run_id("other"), 1, &client_id("x"), &update("t", 100)).await.unwrap();
    for _ in 0..2 {
        let mut updates = bus.updates(&run).await.unwrap();
        for client in ["a", "b", "c"] {
            is_next(&mut updates, client).await;
        }
        server.restart().await;
    }
    let mark = bus.update_mark().await.unwrap();
    bus.publish_update(&run, 1, &client_id("e"), &update("t", 100)).await.unwrap();
    bus.purge_updates(&run, Stale::Client(1, &client_id("b")), mark).await.unwrap();
    let mut updates = bus.updates(&run).await.unwrap();
    for client in ["a", "c", "e"] {
        is_next(&mut updates, client).await;
    }
    bus.purge_updates(&run, Stale::Round(1), mark).await.unwrap();
    bus.publish_update(&run, 2, &client_id("d"), &update("t", 100)).await.unwrap();
    let mut updates = bus.updates(&run).await.unwrap();
    is_next(&mut updates, "e").await;
    is_next(&mut updates, "d").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_updates_those_of_others_and_later_ones_stay() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let (run, other) = (run_id("r"), run_id("other"));
    let publish = async |run: &RunId, round, client: String| {
        bus.publish_update(run, round, &client_id(&client), &update("t", 8)).await.unwrap();
    };
    for (others, left) in [(0, 1), (1, 2)] {
        for number in 0..others {
            publish(&other, 1, format!("x{number}")).await;
        }
        let many = (0..1100).map(|number| publish(&run, 1, format!("c{number}-{others}")));
        stream::iter(many).buffer_unordered(64).collect::<()>().await;
        let mark = bus.update_mark().await.unwrap();
        publish(&run, 1, format!("late-{others}")).await;
        // Not alone: one came after the mark was taken, and it counts as any other.
        bus.purge_updates(&run, Stale::Round(1), mark).await.unwrap();
        let mut updates = bus.updates(&run).await.unwrap();
        is_next(&mut updates, &format!("late-{others}")).await;
        assert_eq!(updates.pending(), 0);
        assert_eq!(bus.runs_with_updates(10).await.unwrap().len(), left);
        let mark = bus.update_mark().await.unwrap();
        bus.purge_updates(&run, Stale::Run, mark).await.unwrap();
    }
}

#[tokio::test]
async fn an_open_reader_misses_and_repeats_nothing_when_the_broker_crashes() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    let mut updates = bus.updates(&run).await.unwrap();
    bus.publish_update(&run, 1, &client_id("a"), &update("t", 8)).await.unwrap();
    is_next(&mut updates, "a").await;
    server.crash().await;
    // Published into the outage: the bus keeps trying until the broker has stored it.
    let late = {
        let (bus, run) = (bus.clone(), run.clone());
        tokio::spawn(async move { bus.publish_update(&run, 1, &client_id("b"), &update("t", 8)).await })
    };
    server.resume().await;
    late.await.unwrap().unwrap();
    is_next(&mut updates, "b").await;
    bus.publish_update(&run, 1, &client_id("c"), &update("t", 8)).await.unwrap();
    is_next(&mut updates, "c").await;
}

#[tokio::test]
async fn events_are_replayed_or_followed() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    bus.publish_event(&event(&run, 1)).await.unwrap();
    let mut all = bus.events(None, true).await.unwrap();
    assert_eq!(all.pending(), 1);
    let mut live = bus.events(Some(&run), false).await.unwrap();
    bus.publish_event(&event(&run_id("other"), 7)).await.unwrap();
    bus.publish_event(&event(&run, 2)).await.unwrap();
    let expected = [event(&run, 1), event(&run_id("other"), 7), event(&run, 2)];
    for (sequence, expected) in (1..).zip(expected) {
        assert_eq!(all.next().await.unwrap(), expected);
        assert_eq!(all.place(), Place { sequence, part: 0 });
    }
    assert_eq!(all.pending(), 0);
    assert_eq!(live.next().await.unwrap(), event(&run, 2));
    server.restart().await;
    bus.publish_event(&event(&run, 3)).await.unwrap();
    assert_eq!(all.next().await.unwrap(), event(&run, 3));
    assert_eq!(live.next().await.unwrap(), event(&run, 3));
}

async fn publish_raw(server: &NatsServer, subject: String, headers: &[(&str, &str)], body: &'static [u8]) {
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let jetstream = async_nats::jetstream::new(client);
    jetstream.publish_with_headers(subject, map, body.into()).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn what_strangers_send_is_refused_by_name_and_stops_nothing() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    let subject_of = |client: &str| subject::update(&run, 1, &client_id(client));
    publish_raw(&server, subject_of("a"), &[], b"\xc1garbage").await;
    publish_raw(&server, subject_of("b"), &[("Fedpeft-Version", "99")], b"").await;
    publish_raw(&server, subject_of("c"), &[("Content-Type", "text/html")], b"<p>").await;
    publish_raw(&server, "fedpeft.v1.update.r.not-a-round.c".into(), &[], b"").await;
    bus.publish_update(&run, 1, &client_id("d"), &update("t", 8)).await.unwrap();
    let mut updates = bus.updates(&run).await.unwrap();
    assert!(matches!(updates.next().await.update, Err(WireError::Decode(_))));
    assert_eq!(updates.next().await.update, Err(WireError::Version { got: 99 }));
    assert!(matches!(updates.next().await.update, Err(WireError::ContentType(_))));
    assert!(updates.next().await.update.is_ok());

    publish_raw(&server, subject::event(&run, "odd"), &[], b"?").await;
    // An event of one run under the subject of another, and one of another kind.
    let forged: &'static [u8] = Format::MessagePack.encode(&event(&run, 9)).unwrap().leak();
    publish_raw(&server, subject::event(&run_id("mine"), "waiting"), &[], forged).await;
    publish_raw(&server, subject::event(&run, "status"), &[], forged).await;
    bus.publish_event(&event(&run, 4)).await.unwrap();
    assert_eq!(bus.events(None, true).await.unwrap().next().await.unwrap(), event(&run, 4));

    publish_raw(&server, subject::task(&run, &client_id("c")), &[], b"?").await;
    let delivery = bus.tasks(&client_id("c")).await.unwrap().next().await.unwrap();
    assert!(delivery.result.is_err());
}

#[tokio::test]
async fn a_message_over_the_brokers_limit_is_refused_and_the_connection_lives() {
    let server = NatsServer::start_with_config("max_payload: 64KB").await;
    let bus: Bus = server.bus().await;
    let run = run_id("r");
    assert_eq!(bus.max_payload(), 64 * 1024);
    let error = bus.publish_update(&run, 1, &client_id("a"), &update("t", 70_000)).await.unwrap_err();
    assert!(matches!(error, BusError::MessageTooLarge { limit: 65_536, .. }), "{error}");
    bus.publish_update(&run, 1, &client_id("a"), &update("t", 60_000)).await.unwrap();
}

#[tokio::test]
async fn a_client_that_floods_its_subject_is_refused_and_its_first_answers_stay() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let run = run_id("r");
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let flood = subject::update(&run, 1, &client_id("flood"));
    let mut stored = 0;
    for _ in 0..100 {
        stored += u32::from(jetstream.publish(flood.clone(), "x".into()).await.unwrap().await.is_ok());
    }
    assert_eq!(stored, 64);
    bus.publish_update(&run, 1, &client_id("honest"), &update("t", 8)).await.unwrap();
    let mut updates = bus.updates(&run).await.unwrap();
    for _ in 0..stored {
        is_next(&mut updates, "flood").await;
    }
    is_next(&mut updates, "honest").await;
}

#[tokio::test]
async fn a_record_of_a_client_is_small() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    bus.clients().await.unwrap();
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let bucket = jetstream.get_key_value(subject::CLIENT_BUCKET).await.unwrap();
    bucket.put("c", vec![b'x'; 30 << 10].into()).await.unwrap();
    assert!(bucket.put("c", vec![b'x'; 33 << 10].into()).await.is_err());
}
