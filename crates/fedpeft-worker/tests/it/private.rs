//! Training with DP-SGD: what leaves the client, and what it spends.

use std::time::Duration;

use fedpeft_privacy::{Accountant, Mechanism, Sampling};
use fedpeft_protocol::{
    Round,
    round::{Outcome, Work},
    run::{DpSgdSpec, ExampleSampling, TrainingSpec},
};

use crate::setup::{Setup, next, within};

/// Four epochs of three steps on 40 examples, of which a step draws 16 in the mean.
fn private(epsilon: Option<f64>) -> Work {
    let sampling = ExampleSampling::Poisson;
    let dp_sgd = DpSgdSpec { clip_norm: 1.0, noise_multiplier: 1.0, sampling, delta: 1e-5, epsilon };
    let training = TrainingSpec {
        local_epochs: 4,
        batch_size: 16,
        learning_rate: 0.05,
        dp_sgd: Some(dp_sgd),
        ..Default::default()
    };
    Work::Train {
        training,
        seed: 3,
        rounds: 8,
        stability: None,
        memory: None,
        personal: false,
        uplink: Default::default(),
        ranks: false,
        secure: None,
    }
}

fn spent(rounds: u64) -> f64 {
    let mechanism = Mechanism::new(Sampling::Poisson { rate: 0.4 }, 1.0).unwrap();
    fedpeft_privacy::epsilon(Accountant::Prv, &[(mechanism, 12 * rounds)], 1e-5).unwrap()
}

#[tokio::test]
async fn clients_count_what_they_spend_and_stop_at_their_budget() {
    let setup = Setup::new().await;
    let mut worker = setup.worker(&["--clients", "1"]);
    setup.present("client-000").await;
    let mut updates = setup.updates().await;
    let budget = Some((spent(2) + spent(3)) / 2.0);
    let mut digests = Vec::new();
    for round in 1..=2 {
        setup.send(&setup.task(round, "client-000", private(budget)), "client-000").await;
        let outcome = next(&mut updates).await.update.unwrap().outcome;
        let Outcome::Trained { loss, epsilon, examples, steps, adapter, .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((examples, steps, loss), (40, 12, 0.0), "a loss has no noise");
        let want = spent(round.into());
        assert!((epsilon.unwrap() / want - 1.0).abs() < 1e-6, "{epsilon:?} is not {want}");
        digests.push(adapter.digest());
    }
    // The same global adapter and another round; noise from no seed.
    assert_ne!(digests[0], digests[1]);
    let refused = async |updates: &mut _, round: Round| {
        setup.send(&setup.task(round, "client-000", private(budget)), "client-000").await;
        let outcome = next(updates).await.update.unwrap().outcome;
        let Outcome::Failed { reason } = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("above its budget") && reason.contains("dp_sgd.epsilon"), "{reason}");
    };
    refused(&mut updates, 3).await;
    // A restart forgets nothing.
    worker.kill().await.unwrap();
    let _worker = setup.worker(&["--clients", "1"]);
    setup.present("client-000").await;
    refused(&mut updates, 4).await;
}

/// Two processes with accounts of their own would release two updates, and each would count one.
#[tokio::test]
async fn of_two_processes_of_a_client_none_trains_privately_until_one_is_gone() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let epsilon = async |updates: &mut _| match next(updates).await.update.unwrap().outcome {
        Outcome::Trained { epsilon, .. } => epsilon.unwrap(),
        outcome => panic!("{outcome:?}"),
    };
    let mut first = setup.worker(&["--clients", "1", "--worker", "first"]);
    setup.present("client-000").await;
    setup.send(&setup.task(1, "client-000", private(None)), "client-000").await;
    assert!((epsilon(&mut updates).await / spent(1) - 1.0).abs() < 1e-6);

    let mut second = setup.command(&["--clients", "1", "--worker", "second"]);
    let mut second = second.env("FEDPEFT_CACHE", setup.folder().join("elsewhere")).spawn().unwrap();
    within(Box::pin(async {
        while setup.present("client-000").await.worker != "second" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }))
    .await;
    // Longer than the first takes to notice.
    tokio::time::sleep(Duration::from_secs(8)).await;
    setup.send(&setup.task(2, "client-000", private(None)), "client-000").await;
    assert!(tokio::time::timeout(Duration::from_secs(8), updates.next()).await.is_err());

    let said = setup.log(&mut second).await;
    assert!(said.contains("another process speaks for this client"), "{said}");
    // The account of the one that is left has all that was released.
    assert!((epsilon(&mut updates).await / spent(2) - 1.0).abs() < 1e-6);
    let said = setup.log(&mut first).await;
    assert!(said.contains("private training waits"), "{said}");
}
