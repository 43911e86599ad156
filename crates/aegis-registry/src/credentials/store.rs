//! The file of `aegis registry login`.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aegis_types::SecretBytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Credential, CredentialError, damage, read};

/// Logins in a file of mode 0600, one per registry. Hosts are as [`crate::registry_host`] gives them.
///
/// All methods block. Several processes may use one file: changes wait for each other, and a reader sees the file as
/// it was before or after one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialStore {
    path: PathBuf,
}

/// A login without its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The host of the registry.
    pub registry: String,
    /// The name of the user; a token has none.
    pub username: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    #[serde(default)]
    registries: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Entry {
    Password { username: String, password: SecretBytes },
    IdentityToken(SecretBytes),
    RegistryToken(SecretBytes),
}

impl CredentialStore {
    /// The store in this file, which need not exist.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The credential for a registry.
    ///
    /// # Errors
    /// The file cannot be read, can be read by others, or is damaged.
    pub fn get(&self, registry: &str) -> Result<Option<Credential>, CredentialError> {
        Ok(self.content()?.registries.remove(registry).map(Credential::from))
    }

    /// All logins, by host.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn list(&self) -> Result<Vec<Login>, CredentialError> {
        let username = |entry| match entry {
            Entry::Password { username, .. } => Some(username),
            Entry::IdentityToken(_) | Entry::RegistryToken(_) => None,
        };
        let registries = self.content()?.registries.into_iter();
        Ok(registries.map(|(registry, entry)| Login { registry, username: username(entry) }).collect())
    }

    /// Keeps a credential for a registry, instead of the one that it had.
    ///
    /// # Errors
    /// As [`get`](Self::get), or the file cannot be written. The file is unchanged then.
    pub fn put(&self, registry: &str, credential: Credential) -> Result<(), CredentialError> {
        self.change(|content| {
            content.registries.insert(registry.to_owned(), Entry::from(credential));
            true
        })?;
        Ok(())
    }

    /// Forgets the credential for a registry; `false` if there is none.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn remove(&self, registry: &str) -> Result<bool, CredentialError> {
        self.change(|content| content.registries.remove(registry).is_some())
    }

    fn content(&self) -> Result<Content, CredentialError> {
        match std::fs::metadata(&self.path) {
            Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
                return Err(CredentialError::Open { path: self.path.clone() });
            }
            _ => {} // whatever else is wrong, reading says it
        }
        let Some(bytes) = read(&self.path)? else { return Ok(Content::default()) };
        serde_json::from_slice(&bytes).map_err(|e| damage(&self.path, &e))
    }

    /// Writes the file anew if `change` says that it changed something, and says so, too.
    fn change(&self, change: impl FnOnce(&mut Content) -> bool) -> Result<bool, CredentialError> {
        let failed = |source| CredentialError::File { action: "write", path: self.path.clone(), source };
        let directory = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        // The file itself is replaced, so it cannot be what changes wait at.
        let lock = self.path.with_extension("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(lock)
            .map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut content = self.content()?;
        if !change(&mut content) {
            return Ok(false);
        }
        let bytes = serde_json::to_vec_pretty(&content).expect("keys are strings");
        self.replace(directory, &Zeroizing::new(bytes)).map_err(failed)?;
        Ok(true)
    }

    fn replace(&self, directory: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".credentials-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        File::open(directory)?.sync_all()
    }
}

impl From<Entry> for Credential {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Password { username, password } => Self::Password { username, password },
            Entry::IdentityToken(token) => Self::IdentityToken(token),
            Entry::RegistryToken(token) => Self::RegistryToken(token),
        }
    }
}

impl From<Credential> for Entry {
    fn from(credential: Credential) -> Self {
        match credential {
            Credential::Password { username, password } => Self::Password { username, password },
            Credential::IdentityToken(token) => Self::IdentityToken(token),
            Credential::RegistryToken(token) => Self::RegistryToken(token),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn password(password: &str) -> Credential {
        let password = SecretBytes::from(password.to_owned());
        Credential::Password { username: "user".to_owned(), password }
    }

    #[test]
    fn logins_are_kept_replaced_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = CredentialStore::new(dir.path().join("new/credentials.json"));
        assert_eq!(store.get("a.b").unwrap(), None);
        assert_eq!(store.list().unwrap(), []);
        store.put("a.b", password("one")).unwrap();
        store.put("a.b", password("two")).unwrap();
        let token = Credential::IdentityToken(SecretBytes::from("t".to_owned()));
        store.put("c.d:5000", token.clone()).unwrap();
        assert_eq!(store.get("a.b").unwrap(), Some(password("two")));
        assert_eq!(store.get("c.d:5000").unwrap(), Some(token));
        let logins = [("a.b", Some("user")), ("c.d:5000", None)];
        let logins = logins.map(|(registry, username)| Login {
            registry: registry.to_owned(),
            username: username.map(str::to_owned),
        });
        assert_eq!(store.list().unwrap(), logins);
        assert!(store.remove("a.b").unwrap());
        assert!(!store.remove("a.b").unwrap());
        assert_eq!(store.get("a.b").unwrap(), None);
    }

    #[test]
    fn the_file_is_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        let store = CredentialStore::new(path.clone());
        store.put("a.b", password("x")).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(store.get("a.b"), Err(CredentialError::Open { .. })));
        assert!(matches!(store.put("a.b", password("y")), Err(CredentialError::Open { .. })));
    }

    #[test]
    fn a_damaged_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        let damaged = r#"{"registries": {"a.b": {"password": {"username": 1, "password": "hunter2"}}}}"#;
        std::fs::write(&path, damaged).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let error = CredentialStore::new(path.clone()).put("a.b", password("x")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
    }

    #[test]
    fn changes_at_the_same_time_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = CredentialStore::new(dir.path().join("credentials.json"));
        std::thread::scope(|scope| {
            for i in 0..8 {
                let store = &store;
                scope.spawn(move || store.put(&format!("r{i}.example"), password("x")).unwrap());
            }
        });
        assert_eq!(store.list().unwrap().len(), 8);
    }
}
