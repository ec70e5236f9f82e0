//! Secure aggregation, with the test as its server.

use std::{num::NonZero, path::Path};

use fedpeft_bus::Updates;
use fedpeft_codec::{Codec, Pipeline};
use fedpeft_protocol::{
    Digest,
    round::{Outcome, Payload, Task, Work},
    secure::SecureStage,
};
use fedpeft_secagg::{Encoding, Message, Params, Peer, Plan, Server, Session, SigningKey, Taken};

use crate::setup::{Setup, next, train};

const CLIENTS: [&str; 3] = ["client-000", "client-001", "client-002"];

fn secure_train(params: &Params) -> Work {
    let mut work = train();
    if let Work::Train { secure, .. } = &mut work {
        *secure = Some(Payload::inline(params.encode().unwrap()));
    }
    work
}

fn params(setup: &Setup, cohort: Vec<Peer>) -> Params {
    let plan = Plan::complete(cohort.len(), 0.0, 0.0).unwrap();
    let encoding = Encoding::fit(cohort.len(), 1.0, 20, 64, 0).unwrap();
    Params::new("run#2", 1, cohort, plan, setup.start.len() as u32, encoding)
}

/// A task of the second attempt at the round, by which nothing is taken for the first.
fn task(setup: &Setup, client: &str, work: Work) -> Task {
    let mut task = setup.task(1, client, work);
    task.task = task.task.strip_suffix('1').unwrap().to_owned() + "2";
    task.epoch = 2;
    task
}

async fn outcome(updates: &mut Updates) -> (String, Outcome) {
    let delivery = next(updates).await;
    (delivery.client.to_string(), delivery.update.unwrap().outcome)
}

#[tokio::test]
async fn what_clients_say_sums_up_to_their_plain_updates() {
    let setup = Setup::new().await;
    let mut worker = setup.worker(&["--clients", "3"]);
    let mut cohort = Vec::new();
    for client in CLIENTS {
        let identity = setup.present(client).await.capabilities.identity.unwrap();
        cohort.push(Peer { client: client.into(), identity: *identity.as_bytes() });
    }
    let mut updates = setup.updates().await;
    let mut plain = vec![0.0; setup.start.len()];
    for client in CLIENTS {
        setup.send(&setup.task(1, client, train()), client).await;
    }
    for _ in CLIENTS {
        let (_, Outcome::Trained { adapter: Payload::Message { data, .. }, .. }) =
            outcome(&mut updates).await
        else {
            panic!("not trained")
        };
        let trained = Codec::new(Pipeline::default(), &setup.layout).decode(&data, None).unwrap();
        for (sum, (end, start)) in plain.iter_mut().zip(trained.iter().zip(&setup.start)) {
            *sum += f64::from(end - start) / 3.0;
        }
    }

    let params = params(&setup, cohort);
    let session = Session::new(params.clone()).unwrap();
    let mut server = Server::new(session.clone());
    let mut said = vec![Digest::of([]); CLIENTS.len()];
    let mut last = None;
    for stage in SecureStage::ALL {
        for (at, client) in CLIENTS.iter().enumerate() {
            let work = match server.request(at as u32).unwrap() {
                None => secure_train(&params),
                Some(request) => {
                    let request = Payload::inline(request.encode().unwrap());
                    Work::Secure { stage, after: said[at], request }
                }
            };
            let task = task(&setup, client, work);
            setup.send(&task, client).await;
            last = Some(task);
        }
        for _ in CLIENTS {
            let (client, outcome) = outcome(&mut updates).await;
            let Outcome::Secured { stage: of, message: Payload::Message { data, digest }, trained } = outcome
            else {
                panic!("{outcome:?}")
            };
            assert_eq!((of, trained.is_some()), (stage, stage == SecureStage::Advertise));
            let message = Message::decode(&data, &session).unwrap();
            assert_eq!(session.name(message.from), client);
            said[message.from as usize] = digest;
            assert_eq!(server.take(&message).unwrap(), Taken::New);
        }
        // Sent anew, a task gets the same bytes, which the broker drops.
        let (task, client) = (last.clone().unwrap(), CLIENTS[2].parse().unwrap());
        setup.bus.publish_task_again(&task, &client, None).await.unwrap();
        assert!(tokio::time::timeout(std::time::Duration::from_millis(300), updates.next()).await.is_err());
        server.close().unwrap();
    }
    let sum = server.sum(NonZero::<usize>::MIN).unwrap();
    assert_eq!(sum.weight(), 120);
    // Each rounds 40 times each value to the grid.
    let bound = 0.5 * 3.0 / 2f64.powi(20) / 120.0 + 1e-7;
    for (secure, plain) in sum.mean().iter().zip(&plain) {
        assert!((f64::from(*secure) - plain).abs() <= bound, "{secure} {plain}");
    }

    // Another process has none of the secrets, and says so.
    worker.kill().await.unwrap();
    let _worker = setup.worker(&["--clients", "3"]);
    let mut task = last.unwrap();
    task.round = 2;
    setup.send(&task, CLIENTS[2]).await;
    let (_, Outcome::Failed { reason }) = outcome(&mut updates).await else { panic!("not failed") };
    assert!(reason.contains("lost its secrets"), "{reason}");
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

#[tokio::test]
async fn strangers_are_refused_and_so_are_plain_rounds() {
    let setup = Setup::new().await;
    let (own, stranger) = (SigningKey::from_bytes(&[7; 32]), SigningKey::from_bytes(&[8; 32]));
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let public = |key: &SigningKey| key.verifying_key().to_bytes();
    let folder = setup.folder().to_string_lossy().into_owned();
    write(setup.folder(), "client-000.identity", &hexadecimal(&[7; 32]));
    let roster = format!(
        "# of the operator\nclient-000 {}\nclient-001 {}\n",
        hexadecimal(&public(&own)),
        "11".repeat(32)
    );
    let roster = write(setup.folder(), "roster", &roster);
    let options = ["--identities", &folder, "--roster", &roster, "--require-secure-aggregation"];
    let _worker = setup.worker(&[&["--clients", "1"], &options[..]].concat());
    let identity = setup.present("client-000").await.capabilities.identity.unwrap();
    assert_eq!(*identity.as_bytes(), public(&own));
    let mut updates = setup.updates().await;
    setup.send(&setup.task(1, "client-000", train()), "client-000").await;
    let (_, Outcome::Failed { reason }) = outcome(&mut updates).await else { panic!("not failed") };
    assert!(reason.contains("--require-secure-aggregation"), "{reason}");
    let peer = |client: &str, key: &SigningKey| Peer { client: client.into(), identity: public(key) };
    let params = params(&setup, vec![peer("client-000", &own), peer("client-001", &stranger)]);
    setup.send(&task(&setup, "client-000", secure_train(&params)), "client-000").await;
    let (_, Outcome::Failed { reason }) = outcome(&mut updates).await else { panic!("not failed") };
    assert!(reason.contains("client-001"), "{reason}");
}
