//! The authority's folder.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use fedpeft_auth::{AuthError, Authority, Enrolment, Role};

use crate::world::{client_id, enrolment, settings};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { [vec![path.clone()], files(&path)].concat() } else { vec![path] })
        .collect()
}

#[test]
fn only_its_owner_reads_it_and_secrets_are_in_keys_and_creds_alone() {
    let folder = tempfile::tempdir().unwrap();
    let auth = folder.path().join("auth");
    let mut authority = Authority::init(&auth, settings(folder.path()), false).unwrap();
    authority.enrol(&enrolment("a", &["a"], None), false).unwrap();
    assert_eq!(mode(&auth), 0o700);
    for path in files(&auth) {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        if path.file_name().unwrap() != ".lock" {
            assert_eq!(mode(&path), expected, "{}", path.display());
        }
        let secret = path.starts_with(auth.join("keys")) || path.starts_with(auth.join("creds"));
        if path.is_file() && !secret {
            let text = fs::read_to_string(&path).unwrap();
            for seed in ["SO", "SA", "SU"] {
                let found = text
                    .split(|c: char| !c.is_ascii_alphanumeric())
                    .any(|w| w.len() == 58 && w.starts_with(seed));
                assert!(!found, "{} holds a seed", path.display());
            }
        }
    }
}

#[test]
fn nothing_is_replaced_by_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let auth = folder.path().join("auth");
    assert!(matches!(Authority::open(&auth), Err(AuthError::Absent(_))));
    let first = Authority::init(&auth, settings(folder.path()), false).unwrap();
    assert!(matches!(Authority::open(&auth), Err(AuthError::Busy(_))));
    drop(first);
    assert!(matches!(Authority::init(&auth, settings(folder.path()), false), Err(AuthError::Occupied(_))));
    let key = fs::read(auth.join("keys/operator.nk")).unwrap();
    drop(Authority::init(&auth, settings(folder.path()), true).unwrap());
    assert_ne!(fs::read(auth.join("keys/operator.nk")).unwrap(), key);
}

#[test]
fn mistakes_are_one_line_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let auth = folder.path().join("auth");
    let mut authority = Authority::init(&auth, settings(folder.path()), false).unwrap();
    let service = |clients| Enrolment { name: "x".into(), role: Role::Admin, clients, lifetime: None };
    let mistakes = [
        authority.enrol(&enrolment("../a", &["a"], None), false).err(),
        authority.enrol(&enrolment("a", &[], None), false).err(),
        authority.enrol(&service(vec![client_id("a")]), false).err(),
        authority.enrol(&enrolment("a", &["a"], Some(Duration::MAX)), false).err(),
        authority.revoke("nobody").err(),
    ];
    drop(authority);
    let seed = fs::read_to_string(auth.join("keys/operator.nk")).unwrap();
    fs::write(auth.join("keys/system.nk"), &seed).unwrap();
    let wrong_kind = Authority::open(&auth).err();
    fs::write(auth.join("keys/system.nk"), &seed[..20]).unwrap();
    let cut = Authority::open(&auth).err();
    fs::write(auth.join("issued.json"), "{").unwrap();
    fs::copy(auth.join("keys/services.nk"), auth.join("keys/system.nk")).unwrap();
    let broken = Authority::open(&auth).err();
    for mistake in mistakes.into_iter().chain([wrong_kind, cut, broken]) {
        let text = mistake.unwrap().to_string();
        assert!(text.lines().count() == 1 && !text.contains(&seed[..20]), "{text}");
    }
}
