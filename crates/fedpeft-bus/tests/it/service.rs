use std::{sync::Arc, time::Duration};

use fedpeft_bus::{ApiError, Bus, BusError, Limits, Service};
use fedpeft_protocol::subject;
use fedpeft_testkit::NatsServer;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Double {
    value: u64,
}

async fn doubling(bus: &Bus) -> Service {
    let mut service = bus.service("doubler", "Doubles numbers.").await.unwrap();
    service
        .endpoint("test.double", |request: Double| async move {
            match request.value {
                13 => Err(ApiError::bad_request("13 is\nunlucky")),
                value => Ok(Double { value: value * 2 }),
            }
        })
        .await
        .unwrap()
        .endpoint("test.large", |size: u32| async move { Ok::<_, ApiError>("x".repeat(size as usize)) })
        .await
        .unwrap();
    service
}

#[tokio::test]
async fn services_answer_and_refuse() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let _service = doubling(&bus).await;
    let reply: Double = bus.request("test.double", &Double { value: 21 }).await.unwrap();
    assert_eq!(reply, Double { value: 42 });
    let error = bus.request::<_, Double>("test.double", &Double { value: 13 }).await.unwrap_err();
    assert!(matches!(&error, BusError::Api(error) if error.code == 400 && error.message == "13 is unlucky"));
    let error = bus.request::<_, Double>("test.double", &"no such shape").await.unwrap_err();
    assert!(matches!(&error, BusError::Api(error) if error.code == 400), "{error}");
    let error = bus.request::<_, String>("test.large", &2_000_000_u32).await.unwrap_err();
    assert!(matches!(&error, BusError::Api(error) if error.code == 500), "{error}");
}

#[tokio::test]
async fn people_ask_in_json_and_are_answered_in_json() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let _service = doubling(&bus).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let subject = format!("{}.test.double", subject::API);
    let reply = client.request(subject.clone(), "{\"value\": 4}".into()).await.unwrap();
    assert_eq!(reply.payload, "{\"value\":8}");
    let headers = reply.headers.unwrap();
    assert_eq!(headers.get(subject::CONTENT_TYPE).unwrap().as_str(), "application/json");
    let reply = client.request(subject, "{\"value\": -1}".into()).await.unwrap();
    let headers = reply.headers.unwrap();
    assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "400");
}

#[tokio::test]
async fn a_missing_service_is_named_and_a_stopped_one_is_missing() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    for (endpoint, program) in [("models.list", "fedpeft-registry"), ("runs.list", "fedpeft-aggregator")] {
        let error = bus.request::<_, Double>(endpoint, &Double { value: 1 }).await.unwrap_err();
        assert!(matches!(error, BusError::NoService { service, .. } if service == program));
    }
    let service = doubling(&bus).await;
    bus.request::<_, Double>("test.double", &Double { value: 1 }).await.unwrap();
    service.stop().await;
    let error = bus.request::<_, Double>("test.double", &Double { value: 1 }).await.unwrap_err();
    assert!(matches!(error, BusError::NoService { .. }), "{error}");
}

#[tokio::test]
async fn services_come_back_with_the_broker() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let _service = doubling(&bus).await;
    server.restart().await;
    // The caller may reconnect before the service does.
    loop {
        match bus.request::<_, Double>("test.double", &Double { value: 1 }).await {
            Ok(reply) => break assert_eq!(reply.value, 2),
            Err(BusError::NoService { .. } | BusError::Broker { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Asks `count` times at once, as a program does that knows no pause, and returns the codes of the refusals.
async fn flood(server: &NatsServer, endpoint: &str, count: usize) -> Vec<String> {
    let client = async_nats::connect(server.url()).await.unwrap();
    let subject = format!("{}.{endpoint}", subject::API);
    let ask = || {
        let request = async_nats::Request::new().payload("{\"value\": 4}".into());
        client.send_request(subject.clone(), request.timeout(Some(Duration::from_secs(60))))
    };
    let replies = join_all((0..count).map(|_| ask())).await;
    let code = |reply: Result<async_nats::Message, _>| {
        Some(reply.unwrap().headers?.get("Nats-Service-Error-Code")?.as_str().to_owned())
    };
    replies.into_iter().filter_map(code).collect()
}

#[tokio::test]
async fn a_flood_is_refused_by_name_and_ends_with_itself() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut service = bus.service("limited", "Takes so much and no more.").await.unwrap();
    let held = Arc::new(Semaphore::new(0));
    let hold = held.clone();
    service
        .limit(Limits { concurrent: 300, per_second: 1.0, burst: 20.0 })
        .endpoint("test.rate", |request: Double| async move { Ok::<_, ApiError>(request) })
        .await
        .unwrap()
        .limit(Limits { concurrent: 4, ..Limits::default() })
        .endpoint("test.held", move |request: Double| {
            let hold = hold.clone();
            async move {
                hold.acquire().await.unwrap().forget();
                Ok::<_, ApiError>(request)
            }
        })
        .await
        .unwrap();

    let refused = flood(&server, "test.rate", 200).await;
    // What the rate gives back while the flood lasts, however slow the machine, is little.
    assert!((120..=180).contains(&refused.len()), "{}", refused.len());
    assert!(refused.iter().all(|code| code == "429"));
    let reply: Double = bus.request("test.rate", &Double { value: 7 }).await.unwrap();
    assert_eq!(reply, Double { value: 7 }, "whoever asks again after a while is answered");

    let flooding = flood(&server, "test.held", 10);
    let released = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        held.add_permits(10);
    };
    let (refused, ()) = tokio::join!(flooding, released);
    assert_eq!(refused, vec!["429"; 6], "four are worked on at once");
}
