use fedpeft_bus::{ApiError, Bus, BusError, Service};
use fedpeft_protocol::subject;
use fedpeft_testkit::NatsServer;
use serde::{Deserialize, Serialize};

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
