//! By what clients know one another in secure aggregation: an Ed25519 key of its own for each, for the key by which it logs
//! in signs whatever nonce a broker likes; and a roster of them all that the operator signs, so that no aggregator can
//! invent one.
//!
//! The roster is lines of a name, a space and a public key in hexadecimal digits, then `# signed by <operator>`, and
//! last `# <signature>` in hexadecimal digits: of all bytes before that line, by the operator's key.

use std::{fs, io, path::Path};

use data_encoding::HEXLOWER;
use fedpeft_protocol::ClientId;
use nkeys::KeyPair;

use crate::{
    AuthError,
    files::{private_folder, write_private},
};

/// What a roster begins with.
const TITLE: &str = "# fedpeft roster 1\n";
const EXTENSION: &str = "identity";

/// Makes identities for `clients` in `folder/identities`, where they have none or `anew` says so.
pub(crate) fn add(folder: &Path, clients: &[ClientId], anew: bool) -> Result<(), AuthError> {
    let identities = folder.join("identities");
    private_folder(&identities)?;
    for client in clients {
        let path = identities.join(client.as_str()).with_extension(EXTENSION);
        if anew || !path.exists() {
            let seed = KeyPair::new_user().seed().map_err(AuthError::key)?;
            let (_, seed) = nkeys::decode_seed(&seed).map_err(AuthError::key)?;
            write_private(&path, &format!("{}\n", HEXLOWER.encode(&seed)))?;
        }
    }
    Ok(())
}

/// Forgets the identity of a client.
pub(crate) fn remove(folder: &Path, client: &ClientId) -> Result<(), AuthError> {
    let path = folder.join("identities").join(client.as_str()).with_extension(EXTENSION);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(AuthError::file(path)(error)),
        _ => Ok(()),
    }
}

/// Writes `folder/roster`, of all identities there are.
pub(crate) fn write(folder: &Path, operator: &KeyPair) -> Result<(), AuthError> {
    let identities = folder.join("identities");
    let mut lines = Vec::new();
    for file in fs::read_dir(&identities).map_err(AuthError::file(&identities))?.flatten() {
        let path = file.path();
        let name = path.file_stem().and_then(|name| name.to_str()).and_then(|name| ClientId::new(name).ok());
        if let (Some(client), true) = (name, path.extension().is_some_and(|ending| ending == EXTENSION)) {
            lines.push(format!("{client} {}\n", public(&path)?));
        }
    }
    lines.sort_unstable();
    let text = format!("{TITLE}{}# signed by {}\n", lines.concat(), operator.public_key());
    let signature = operator.sign(text.as_bytes()).map_err(AuthError::key)?;
    write_private(&folder.join("roster"), &format!("{text}# {}\n", HEXLOWER.encode(&signature)))
}

/// The public half of an identity.
fn public(path: &Path) -> Result<String, AuthError> {
    let fail = |reason: &str| AuthError::KeyFile { path: path.to_owned(), reason: reason.to_owned() };
    let text = fs::read_to_string(path).map_err(|error| fail(&error.to_string()))?;
    let seed = HEXLOWER.decode(text.trim().as_bytes()).ok().and_then(|seed| <[u8; 32]>::try_from(seed).ok());
    let seed = seed.ok_or_else(|| fail("it holds no identity, 64 hexadecimal digits"))?;
    let key = KeyPair::new_from_raw(nkeys::KeyPairType::User, seed).map_err(AuthError::key)?;
    let (_, public) = nkeys::from_public_key(&key.public_key()).map_err(AuthError::key)?;
    Ok(HEXLOWER.encode(&public))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roster_lists_everybody_and_is_signed() {
        let folder = tempfile::tempdir().unwrap();
        let client = |name: &str| ClientId::new(name).unwrap();
        let operator = KeyPair::new_operator();
        add(folder.path(), &[client("b"), client("a")], false).unwrap();
        write(folder.path(), &operator).unwrap();
        let read = || fs::read_to_string(folder.path().join("roster")).unwrap();
        let before = read();
        let names: Vec<_> = before.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["#", "a", "b", "#", "#"]);
        let (text, last) = before.trim_end().rsplit_once('\n').unwrap();
        let signature = HEXLOWER.decode(last.strip_prefix("# ").unwrap().as_bytes()).unwrap();
        let known = KeyPair::from_public_key(&operator.public_key()).unwrap();
        known.verify(format!("{text}\n").as_bytes(), &signature).unwrap();

        // Enrolled again, a client is who it was, unless it is to be another.
        add(folder.path(), &[client("a")], false).unwrap();
        write(folder.path(), &operator).unwrap();
        assert_eq!(read(), before);
        add(folder.path(), &[client("a")], true).unwrap();
        remove(folder.path(), &client("b")).unwrap();
        write(folder.path(), &operator).unwrap();
        let after = read();
        assert!(after.lines().count() == 4 && after.lines().nth(1) != before.lines().nth(1), "{after}");
    }
}
