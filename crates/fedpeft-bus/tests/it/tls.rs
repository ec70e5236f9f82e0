//! Encrypted connections, and what is said when they do not come about.

use std::{fs, path::PathBuf};

use fedpeft_bus::{Bus, BusConfig, BusError, Tls};
use fedpeft_testkit::{Certificates, NatsServer, Pair};

/// A server that encrypts, with `more` in its `tls` section.
async fn server(pair: &Pair, more: &str) -> NatsServer {
    let (cert, key) = (pair.cert.display(), pair.key.display());
    NatsServer::start_with_config(&format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\", {more} }}"))
        .await
}

fn verifying(certificates: &Certificates) -> String {
    format!("ca_file: \"{}\", verify: true", certificates.ca().display())
}

async fn connect(server: &NatsServer, tls: Tls) -> Result<Bus, BusError> {
    Bus::connect(&BusConfig { server: server.url(), tls, name: "test".into(), ..Default::default() }).await
}

async fn refusal(server: &NatsServer, tls: Tls) -> String {
    let Err(error) = connect(server, tls).await else { panic!("connected") };
    assert!(matches!(error, BusError::Tls { .. } | BusError::TlsFile { .. }), "{error:?}");
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

fn ca(path: PathBuf) -> Tls {
    Tls { ca: Some(path), ..Tls::default() }
}

fn with(ca: PathBuf, pair: &Pair) -> Tls {
    Tls { ca: Some(ca), cert: Some(pair.cert.clone()), key: Some(pair.key.clone()), first: false }
}

#[tokio::test]
async fn encrypted_connections_carry_everything() {
    let certificates = Certificates::new();
    let server = server(&certificates.issue("server"), "").await;
    let bus = connect(&server, ca(certificates.ca())).await.unwrap();
    bus.ensure_topology().await.unwrap();
    let stored = bus.put_blob(vec![7; 300_000].into()).await.unwrap();
    assert_eq!(bus.get_blob(&stored.digest, 1 << 20).await.unwrap().0.len(), 300_000);
    // The address may ask for it as well, and the server's offer is taken in any case.
    let config = BusConfig {
        server: server.url().replace("nats://", "tls://"),
        tls: ca(certificates.ca()),
        name: "test".into(),
        ..Default::default()
    };
    assert!(Bus::connect(&config).await.unwrap().is_connected());
}

#[tokio::test]
async fn a_server_may_verify_its_clients() {
    let (certificates, strangers) = (Certificates::new(), Certificates::new());
    let server = server(&certificates.issue("server"), &verifying(&certificates)).await;
    let client = certificates.issue("client");
    connect(&server, with(certificates.ca(), &client)).await.unwrap().ensure_topology().await.unwrap();

    let none = refusal(&server, ca(certificates.ca())).await;
    assert!(none.contains("--tls-cert and --tls-key"), "{none}");
    let stranger = refusal(&server, with(certificates.ca(), &strangers.issue("stranger"))).await;
    assert!(stranger.contains("authority of --tls-cert"), "{stranger}");
    let expired = refusal(&server, with(certificates.ca(), &certificates.issue_expired("old"))).await;
    assert!(expired.contains("--tls-cert"), "{expired}");
}

#[tokio::test]
async fn a_server_that_handshakes_first_is_reached() {
    let certificates = Certificates::new();
    let server = server(&certificates.issue("server"), "handshake_first: \"300ms\"").await;
    let first = Tls { first: true, ..ca(certificates.ca()) };
    assert!(connect(&server, first).await.unwrap().is_connected());
}

#[tokio::test]
async fn servers_that_cannot_be_believed_are_refused_by_name_and_cure() {
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let good = server(&certificates.issue("server"), "").await;
    let wrong = refusal(&good, ca(others.ca())).await;
    assert!(wrong.contains(&good.url()) && wrong.contains("another authority"), "{wrong}");

    let old = server(&certificates.issue_expired("old"), "").await;
    let expired = refusal(&old, ca(certificates.ca())).await;
    assert!(expired.contains("renew the server's certificate"), "{expired}");

    let elsewhere = server(&certificates.issue_for("elsewhere", "elsewhere.example"), "").await;
    let name = refusal(&elsewhere, ca(certificates.ca())).await;
    assert!(name.contains("host name"), "{name}");
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_was_asked_for() {
    let (certificates, server) = (Certificates::new(), NatsServer::start().await);
    let plain = refusal(&server, ca(certificates.ca())).await;
    assert!(plain.contains("does not speak TLS"), "{plain}");
}

#[tokio::test]
async fn files_are_named_with_what_is_wrong_with_them() {
    let certificates = Certificates::new();
    let (a, b) = (certificates.issue("a"), certificates.issue("b"));
    let junk = certificates.folder().join("junk.pem");
    fs::write(&junk, "junk").unwrap();
    let missing = certificates.folder().join("missing.pem");
    let only = |cert, key| Tls { cert, key, ..Tls::default() };
    let cases = [
        (ca(missing.clone()), &missing, "No such file"),
        (ca(junk.clone()), &junk, "no certificate in PEM"),
        (only(Some(a.cert.clone()), None), &a.cert, "--tls-key"),
        (only(None, Some(a.key.clone())), &a.key, "--tls-cert"),
        (only(Some(a.cert.clone()), Some(b.key.clone())), &b.key, "does not fit"),
        (only(Some(a.cert.clone()), Some(junk.clone())), &junk, "no private key in PEM"),
    ];
    let server = NatsServer::start().await;
    for (tls, file, expected) in cases {
        let text = refusal(&server, tls).await;
        assert!(text.contains(&file.display().to_string()) && text.contains(expected), "{text}");
    }
}
