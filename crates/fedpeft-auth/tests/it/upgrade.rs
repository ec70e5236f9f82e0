//! Accounts that an earlier version of the program made, and what becomes of them.

use std::{fs, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fedpeft_auth::Authority;
use fedpeft_bus::BusError;
use fedpeft_testkit::NatsServer;
use nkeys::KeyPair;
use serde_json::Value;

use crate::{
    work::presence,
    world::{PATIENCE, World, client_id, enrolment, settings},
};

/// Rewrites the accounts of `folder` as they were before tasks had hints and were asked for by subject.
fn without_hints(folder: &Path) {
    let seed = fs::read_to_string(folder.join("keys/operator-signing.nk")).unwrap();
    let key = KeyPair::from_seed(seed.trim()).unwrap();
    let path = folder.join("accounts.conf");
    let mut text = fs::read_to_string(&path).unwrap();
    let tokens: Vec<String> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix('A'))
        .filter_map(|line| Some(line.split_once(": ")?.1.to_owned()))
        .collect();
    assert_eq!(tokens.len(), 3, "three accounts");
    for token in tokens {
        let [header, claims, _] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
        let mut decoded: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        forget(&mut decoded);
        let unsigned = format!("{header}.{}", URL_SAFE_NO_PAD.encode(decoded.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(unsigned.as_bytes()).unwrap());
        text = text.replace(&token, &format!("{unsigned}.{signature}"));
    }
    fs::write(&path, text).unwrap();
}

/// Takes away every subject of a hint, and those by which a task is asked for.
fn forget(value: &mut Value) {
    let is_new = |value: &Value| {
        let text = value.as_str().or_else(|| value["subject"].as_str()).unwrap_or_default();
        text.contains("fedpeft.v1.hint.") || text.contains("DIRECT.GET.FEDPEFT_OPEN_TASKS")
    };
    match value {
        Value::Array(list) => {
            list.retain(|value| !is_new(value));
            list.iter_mut().for_each(forget);
        }
        Value::Object(map) => map.values_mut().for_each(forget),
        _ => {}
    }
}

#[tokio::test]
async fn accounts_of_an_earlier_version_are_renewed_and_credentials_stay_good() {
    for restarts in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut authority =
            Authority::init(&folder.path().join("auth"), settings(folder.path()), false).unwrap();
        authority.enrol(&enrolment("a", &["a"], None), false).unwrap();
        without_hints(authority.folder());
        let nats = NatsServer::start_with_file(&authority.server_config()).await;
        let mut world = World { authority, nats, folder };
        world.bus("registry").await.unwrap().ensure_topology().await.unwrap();
        let handed_out = world.copy_of_creds("a");
        let before = world.bus_with(&handed_out).await.unwrap();
        before.clients().await.unwrap().put("a", &presence("a")).await.unwrap();
        let error = before.tasks(&client_id("a")).await.err().unwrap();
        assert!(matches!(error, BusError::Forbidden { .. }), "{error:?}");

        world.authority.refresh().unwrap();
        match restarts {
            true => world.nats.restart().await,
            false => world.push().await,
        }
        let after = world.bus_with(&handed_out).await.unwrap();
        after.tasks(&client_id("a")).await.unwrap();
        // Who was connected is let in again under the new rules.
        let waiting = async {
            while before.tasks(&client_id("a")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }
}
