use fedpeft_bus::{Bus, BusConfig, BusError};
use fedpeft_testkit::NatsServer;

fn config(server: &str) -> BusConfig {
    BusConfig { server: server.into(), name: "test".into(), ..Default::default() }
}

async fn error_of(config: &BusConfig) -> BusError {
    match Bus::connect(config).await {
        Ok(_) => panic!("connected"),
        Err(error) => error,
    }
}

fn assert_one_line(error: &BusError) {
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
}

#[tokio::test]
async fn an_unreachable_broker_is_named() {
    let error = error_of(&config("nats://127.0.0.1:1")).await;
    assert!(matches!(&error, BusError::Unreachable { server, .. } if server == "nats://127.0.0.1:1"));
    assert_one_line(&error);
    let error = error_of(&config("nats://no such host")).await;
    assert!(matches!(error, BusError::Unreachable { .. }));
    assert_one_line(&error);
}

#[tokio::test]
async fn a_listener_that_is_no_broker_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = error_of(&config(&format!("nats://{}", silent.local_addr().unwrap()))).await;
    assert!(matches!(error, BusError::Unreachable { .. }));
    assert_one_line(&error);
}

#[tokio::test]
async fn a_broker_without_jetstream_is_named() {
    let server = NatsServer::start_without_jetstream().await;
    let bus = Bus::connect(&config(&server.url())).await.unwrap();
    let error = bus.ensure_topology().await.unwrap_err();
    assert!(matches!(error, BusError::NoJetStream { .. }), "{error:?}");
    assert_one_line(&error);
}

#[tokio::test]
async fn a_broker_that_wants_credentials_refuses() {
    let server = NatsServer::start_with_config("authorization { user: a, password: b }").await;
    let error = error_of(&config(&server.url())).await;
    assert!(matches!(error, BusError::Refused { .. }), "{error:?}");
    assert_one_line(&error);
    let creds = server.folder().join("missing.creds");
    let error = error_of(&BusConfig { creds: Some(creds.clone()), ..config(&server.url()) }).await;
    assert!(matches!(&error, BusError::Credentials { path, .. } if *path == creds));
    assert_one_line(&error);
}

#[tokio::test]
async fn topology_may_be_ensured_by_many_at_once_and_again() {
    let server = NatsServer::start().await;
    let bus = Bus::connect(&config(&server.url())).await.unwrap();
    let all = (0..8).map(|_| {
        let bus = bus.clone();
        tokio::spawn(async move { bus.ensure_topology().await })
    });
    for one in futures::future::join_all(all).await {
        one.unwrap().unwrap();
    }
    bus.ensure_topology().await.unwrap();
}
