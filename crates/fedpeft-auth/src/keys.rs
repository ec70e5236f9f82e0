//! Secret keys: one file each, never shown.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nkeys::{KeyPair, KeyPairType};

use crate::{AuthError, Role, files::write_private};

/// The secret keys of an authority.
pub(crate) struct Keys {
    /// Identity of the operator; it signs its own claims alone.
    pub operator: KeyPair,
    /// Signs accounts.
    pub operator_signing: KeyPair,
    /// Account that administers the server.
    pub system: KeyPair,
    pub system_signing: KeyPair,
    /// Account of the services, with all streams.
    pub services: KeyPair,
    /// Account of the clients.
    pub clients: KeyPair,
    /// Sign credentials, one key per role.
    roles: Vec<(Role, KeyPair)>,
}

impl Keys {
    /// New keys.
    pub fn generate() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            operator_signing: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            system_signing: KeyPair::new_account(),
            services: KeyPair::new_account(),
            clients: KeyPair::new_account(),
            roles: Role::ALL.map(|role| (role, KeyPair::new_account())).into(),
        }
    }

    /// Reads all keys from `folder`.
    pub fn read(folder: &Path) -> Result<Self, AuthError> {
        let account = |name: &str| read(folder, name, &KeyPairType::Account);
        let mut roles = Vec::new();
        for role in Role::ALL {
            roles.push((role, account(&format!("role-{role}"))?));
        }
        Ok(Self {
            operator: read(folder, "operator", &KeyPairType::Operator)?,
            operator_signing: read(folder, "operator-signing", &KeyPairType::Operator)?,
            system: account("system")?,
            system_signing: account("system-signing")?,
            services: account("services")?,
            clients: account("clients")?,
            roles,
        })
    }

    /// Writes all keys to `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), AuthError> {
        let single = [
            ("operator", &self.operator),
            ("operator-signing", &self.operator_signing),
            ("system", &self.system),
            ("system-signing", &self.system_signing),
            ("services", &self.services),
            ("clients", &self.clients),
        ];
        let single = single.map(|(name, key)| (name.to_owned(), key));
        let roles = self.roles.iter().map(|(role, key)| (format!("role-{role}"), key));
        for (name, key) in single.into_iter().chain(roles) {
            write(folder, &name, key)?;
        }
        Ok(())
    }

    /// The key that signs credentials of a role.
    pub fn role(&self, wanted: Role) -> Result<&KeyPair, AuthError> {
        let found = self.roles.iter().find(|(role, _)| *role == wanted);
        found
            .map(|(_, key)| key)
            .ok_or_else(|| AuthError::Key(format!("there is none for the role {wanted}")))
    }

    /// Replaces the key of a role, in `folder` too.
    pub fn renew(&mut self, role: Role, folder: &Path) -> Result<(), AuthError> {
        let key = KeyPair::new_account();
        write(folder, &format!("role-{role}"), &key)?;
        self.roles.retain(|(other, _)| *other != role);
        self.roles.push((role, key));
        Ok(())
    }

    /// The account that holds a role.
    pub fn account_of(&self, role: Role) -> &KeyPair {
        if role == Role::Client { &self.clients } else { &self.services }
    }
}

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.nk"))
}

fn write(folder: &Path, name: &str, key: &KeyPair) -> Result<(), AuthError> {
    let seed = key.seed().map_err(AuthError::key)?;
    write_private(&path(folder, name), &format!("{seed}\n"))
}

fn read(folder: &Path, name: &str, kind: &KeyPairType) -> Result<KeyPair, AuthError> {
    let path = path(folder, name);
    let fail = |reason: String| AuthError::KeyFile { path: path.clone(), reason };
    let text = fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
    // Not the library's own words: they might quote what they do not understand.
    let key = KeyPair::from_seed(text.trim()).map_err(|_| fail("it holds no nkey seed".into()))?;
    let same = std::mem::discriminant(&key.key_pair_type()) == std::mem::discriminant(kind);
    if same { Ok(key) } else { Err(fail("it holds a key of another kind".into())) }
}
