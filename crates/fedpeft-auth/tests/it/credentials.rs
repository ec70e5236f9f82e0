//! Credentials that end: by revocation, by time, by there being none.

use std::time::Duration;

use fedpeft_auth::{AuthError, Authority, Role};
use fedpeft_bus::{Bus, BusConfig, BusError};
use fedpeft_testkit::NatsServer;

use crate::world::{PATIENCE, World, client_id, enrolment};

async fn wait_until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

fn assert_refused(result: Result<Bus, BusError>) {
    let Err(error) = result else { panic!("connected") };
    assert!(matches!(error, BusError::Refused { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.lines().count() == 1 && text.contains("--creds"), "{text}");
}

#[tokio::test]
async fn nobody_comes_in_without_credentials_or_with_forged_ones() {
    let world = World::new().await;
    let (server, name) = (world.nats.url(), "test".to_owned());
    assert_refused(Bus::connect(&BusConfig { server, name, ..Default::default() }).await);
    // The token of one with the key of another.
    let (a, b) = (world.authority.creds("a"), world.authority.creds("B"));
    let (a, b) = (std::fs::read_to_string(a).unwrap(), std::fs::read_to_string(b).unwrap());
    let cut = |text: &str| text.find("-----BEGIN USER NKEY SEED").unwrap();
    let forged = world.folder.path().join("forged.creds");
    std::fs::write(&forged, format!("{}{}", &b[..cut(&b)], &a[cut(&a)..])).unwrap();
    assert_refused(world.bus_with(&forged).await);
}

#[tokio::test]
async fn the_revoked_are_thrown_out_and_stay_out() {
    let mut world = World::new().await;
    let (kept, bus, other) =
        (world.copy_of_creds("a"), world.bus("a").await.unwrap(), world.bus("B").await.unwrap());
    let old_config = world.folder.path().join("old.conf");
    std::fs::copy(world.authority.folder().join("accounts.conf"), &old_config).unwrap();
    world.authority.revoke("a").unwrap();
    assert!(!world.authority.creds("a").exists());
    assert!(bus.is_connected());
    world.push().await;
    wait_until(|| !bus.is_connected()).await;
    assert_refused(world.bus_with(&kept).await);
    assert!(other.is_connected());
    // Nor does a restart let them in, be it with the configuration from before.
    std::fs::copy(&old_config, world.authority.folder().join("accounts.conf")).unwrap();
    world.nats.restart().await;
    assert_refused(world.bus_with(&kept).await);
    world.bus("B").await.unwrap();
    // New credentials for the same client are good.
    world.authority.enrol(&enrolment("a", &["a"], None), false).unwrap();
    world.bus("a").await.unwrap().tasks(&client_id("a")).await.unwrap();
    assert_refused(world.bus_with(&kept).await);
}

#[tokio::test]
async fn replacing_revokes_the_former() {
    let mut world = World::new().await;
    let kept = world.copy_of_creds("site");
    let site = enrolment("site", &["c", "d"], None);
    assert!(matches!(world.authority.enrol(&site, false), Err(AuthError::Issued { .. })));
    let (_, changed) = world.authority.enrol(&site, true).unwrap();
    assert!(changed);
    world.push().await;
    assert_refused(world.bus_with(&kept).await);
    world.bus("site").await.unwrap();
    world.authority.revoke("aggregator").unwrap();
    let aggregator = world.bus("registry").await;
    world.push().await;
    assert!(aggregator.unwrap().is_connected());
}

#[tokio::test]
async fn a_new_signing_key_ends_all_that_the_old_one_signed() {
    let mut world = World::new().await;
    let (bus, aggregator) = (world.bus("site").await.unwrap(), world.bus("aggregator").await.unwrap());
    let kept = world.copy_of_creds("site");
    // A thief has the keys, and signs for itself.
    let stolen = world.folder.path().join("stolen");
    let copied =
        std::process::Command::new("cp").arg("-r").arg(world.authority.folder()).arg(&stolen).status();
    assert!(copied.unwrap().success());
    let mut thief = Authority::open(&stolen).unwrap();
    thief.enrol(&enrolment("thief", &["a"], None), false).unwrap();
    world.bus_with(&thief.creds("thief")).await.unwrap();

    let renewed = world.authority.rotate(Role::Client).unwrap();
    let names: Vec<&str> = renewed.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["a", "B", "site"]);
    world.push().await;
    wait_until(|| !bus.is_connected()).await;
    assert_refused(world.bus_with(&kept).await);
    assert_refused(world.bus_with(&thief.creds("thief")).await);
    world.bus("site").await.unwrap().tasks(&client_id("d")).await.unwrap();
    assert!(aggregator.is_connected());
    // The new key is the one that is kept.
    let folder = world.authority.folder().to_owned();
    let World { authority, .. } = world;
    drop(authority);
    assert_eq!(Authority::open(&folder).unwrap().rotate(Role::Client).unwrap().len(), 3);
}

#[tokio::test]
async fn credentials_end_with_their_time() {
    let mut world = World::new().await;
    let short = enrolment("guest", &["guest"], Some(Duration::from_secs(3)));
    world.authority.enrol(&short, false).unwrap();
    let bus = world.bus("guest").await.unwrap();
    wait_until(|| !bus.is_connected()).await;
    // Time is told in seconds: within the last one the broker lets them in, and out again.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_refused(world.bus("guest").await);
    // Expired ones are in nobody's way.
    world.authority.enrol(&enrolment("guest", &["guest"], None), true).unwrap();
    world.bus("guest").await.unwrap();
}

#[tokio::test]
async fn an_open_broker_needs_none_of_this() {
    let server = NatsServer::start().await;
    server.bus().await.clients().await.unwrap().keys("").await.unwrap();
}
