//! Features that are computed once: what is trained on them is what is trained on examples.

use fedpeft_codec::decode;
use fedpeft_peft::Method;
use fedpeft_protocol::{
    round::{Outcome, Payload, Personal, Work},
    run::TrainingSpec,
};

use crate::setup::{Setup, next};

fn training(cache_features: bool) -> Work {
    let training = TrainingSpec {
        local_epochs: 3,
        batch_size: 16,
        learning_rate: 0.05,
        cache_features,
        ..Default::default()
    };
    Work::Train {
        training,
        seed: 3,
        rounds: 8,
        stability: None,
        memory: None,
        personal: true,
        uplink: Default::default(),
        ranks: false,
        secure: None,
    }
}

/// What a client comes to in a round.
struct Came {
    adapter: Vec<f32>,
    loss: f64,
    own: Personal,
}

/// What two clients of one worker come to in two rounds, and what the worker has logged.
async fn rounds(cache: bool, options: &[&str]) -> (Vec<Came>, String) {
    let setup = Setup::of(Method::Head).await;
    setup.hold_back(0.25);
    let mut worker = setup.worker(&[&["--clients", "2"], options].concat());
    setup.present("client-001").await;
    let (mut updates, mut all) = (setup.updates().await, Vec::new());
    for (round, client) in [(1, "client-000"), (1, "client-001"), (2, "client-001"), (2, "client-000")] {
        setup.send(&setup.task(round, client, training(cache)), client).await;
        match next(&mut updates).await.update.unwrap().outcome {
            Outcome::Trained {
                adapter: Payload::Message { data, .. }, loss, personal: Some(own), ..
            } => {
                let adapter = decode(&data, &setup.layout).unwrap();
                all.push(Came { adapter, loss, own });
            }
            other => panic!("{other:?}"),
        }
    }
    (all, setup.log(&mut worker).await)
}

#[tokio::test]
async fn rounds_on_features_are_rounds_on_examples() {
    let (plain, cached, full) =
        tokio::join!(rounds(false, &[]), rounds(true, &[]), rounds(true, &["--feature-cache-mib", "0"]));
    let told = "features do not fit --feature-cache-mib";
    assert!(full.1.contains(told) && !cached.1.contains(told), "{}", full.1);
    for (plain, other) in plain.0.iter().chain(&plain.0).zip(cached.0.iter().chain(&full.0)) {
        assert!((plain.loss - other.loss).abs() < 1e-6, "{} is not {}", other.loss, plain.loss);
        assert!((plain.own.loss - other.own.loss).abs() < 1e-6);
        assert_eq!(
            (plain.own.examples, plain.own.accuracy, plain.adapter.len()),
            (other.own.examples, other.own.accuracy, other.adapter.len())
        );
        assert!(plain.adapter.iter().zip(&other.adapter).all(|(a, b)| (a - b).abs() < 1e-5));
    }
    assert_ne!(plain.0[0].adapter, plain.0[1].adapter);
}
