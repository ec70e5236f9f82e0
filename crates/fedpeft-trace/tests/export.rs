//! A span on its way out.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use fedpeft_trace::{Settings, span};
use tracing_subscriber::layer::SubscriberExt;

#[test]
fn spans_leave_and_logs_do_not_decide() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let received = thread::spawn(move || {
        let (mut stream, _) = collector.accept().unwrap();
        let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
        // The last thing in the request is the name of the last span.
        while !request.windows(9).any(|window| window == b"last span") {
            let read = stream.read(&mut chunk).unwrap();
            request.extend_from_slice(&chunk[..read]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        String::from_utf8_lossy(&request).into_owned()
    });
    let settings = Settings { program: "tester", version: "1", endpoint: Some(endpoint) };
    let exporting = fedpeft_trace::start(&settings).unwrap().unwrap();
    let quiet = tracing_subscriber::fmt::layer();
    let quiet = tracing_subscriber::Layer::with_filter(quiet, tracing_subscriber::EnvFilter::new("error"));
    let subscriber = tracing_subscriber::registry().with(quiet).with(Some(&exporting).map(|e| e.layer()));
    tracing::subscriber::with_default(subscriber, || {
        let first = span!("first span", fedpeft.round = 3);
        assert!(!first.is_disabled());
        first.in_scope(|| drop(span!("last span")));
    });
    exporting.finish();
    let request = received.join().unwrap();
    assert!(request.starts_with("POST /v1/traces HTTP/1.1") && request.contains("tester"), "{request}");
    for part in ["first span", "fedpeft.round", "service.version"] {
        assert!(request.contains(part), "{part}: {request}");
    }
}
