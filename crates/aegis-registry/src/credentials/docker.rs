//! Docker's `config.json`, as far as it is about logins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aegis_types::SecretBytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Credential, CredentialError, damage, read};
use crate::endpoint::registry_host;

/// The file.
#[derive(Debug)]
pub(super) struct Config {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: Option<BTreeMap<String, Auth>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// base64 of `user:password`.
    auth: Option<SecretBytes>,
    username: Option<String>,
    password: Option<SecretBytes>,
    identitytoken: Option<SecretBytes>,
    registrytoken: Option<SecretBytes>,
}

impl Config {
    /// Reads the file; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CredentialError> {
        let Some(bytes) = read(path)? else { return Ok(None) };
        let content = serde_json::from_slice(&bytes).map_err(|e| damage(path, &e))?;
        Ok(Some(Self { path: path.to_owned(), content }))
    }

    /// The helper that knows this host: its own, or the one for all.
    pub(super) fn helper(&self, host: &str) -> Option<&str> {
        let own = self.content.cred_helpers.as_ref().and_then(|helpers| of_host(helpers, host));
        own.or(self.content.creds_store.as_ref()).map(String::as_str).filter(|helper| !helper.is_empty())
    }

    /// What the file itself has for this host. Beside a helper, Docker keeps empty entries.
    pub(super) fn stored(&self, host: &str) -> Result<Option<Credential>, CredentialError> {
        let Some(auth) = self.content.auths.as_ref().and_then(|auths| of_host(auths, host)) else {
            return Ok(None);
        };
        let filled =
            |secret: &Option<SecretBytes>| secret.clone().filter(|secret| !secret.expose().is_empty());
        if let Some(token) = filled(&auth.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(token) = filled(&auth.registrytoken) {
            return Ok(Some(Credential::RegistryToken(token)));
        }
        if let Some(encoded) = filled(&auth.auth) {
            return decode(&encoded).map(Some).ok_or_else(|| {
                let why = format!("`auth` of {host} is not the base64 of `user:password`");
                CredentialError::Damaged { path: self.path.clone(), why }
            });
        }
        let username = auth.username.clone().filter(|name| !name.is_empty());
        Ok(username
            .zip(filled(&auth.password))
            .map(|(username, password)| Credential::Password { username, password }))
    }
}

/// The entry of a host. Keys are hosts or addresses; one that is the host exactly is preferred.
fn of_host<'a, T>(map: &'a BTreeMap<String, T>, host: &str) -> Option<&'a T> {
    let same = |key: &str| registry_host(key).is_ok_and(|key| key == host);
    map.get(host).or_else(|| map.iter().find(|(key, _)| same(key)).map(|(_, value)| value))
}

fn decode(encoded: &SecretBytes) -> Option<Credential> {
    let decoded = Zeroizing::new(STANDARD.decode(encoded.expose_text()?.trim()).ok()?);
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    // Old versions of Docker fill up with NUL bytes.
    let password = password.trim_matches('\0');
    (!username.is_empty()).then(|| Credential::Password {
        username: username.to_owned(),
        password: SecretBytes::new(password.as_bytes().to_vec()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn config(json: &str) -> Config {
        Config { path: "config.json".into(), content: serde_json::from_str(json).unwrap() }
    }

    fn password(username: &str, password: &str) -> Option<Credential> {
        let password = SecretBytes::from(password.to_owned());
        Some(Credential::Password { username: username.to_owned(), password })
    }

    #[test]
    fn all_forms_of_entries_are_read() {
        let config = config(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dTpwOnc="},
                "ghcr.io": {"username": "g", "password": "h"},
                "https://quay.io": {"auth": "dTpwAAA="},
                "a.azurecr.io": {"auth": "MDAwOg==", "identitytoken": "refresh"},
                "t.example": {"registrytoken": "bearer"},
                "empty.example": {},
                "bad.example": {"auth": "%%%"},
                "no-colon.example": {"auth": "dXNlcg=="}
            }, "HttpHeaders": {"x": "y"}, "credsStore": ""}"#,
        );
        let stored = |host: &str| config.stored(host).unwrap();
        assert_eq!(stored("docker.io"), password("u", "p:w"));
        assert_eq!(stored("ghcr.io"), password("g", "h"));
        assert_eq!(stored("quay.io"), password("u", "p"));
        let token = |text: &str| SecretBytes::from(text.to_owned());
        assert_eq!(stored("a.azurecr.io"), Some(Credential::IdentityToken(token("refresh"))));
        assert_eq!(stored("t.example"), Some(Credential::RegistryToken(token("bearer"))));
        assert_eq!(stored("empty.example"), None);
        assert_eq!(stored("other.example"), None);
        assert!(config.stored("bad.example").is_err());
        assert!(config.stored("no-colon.example").is_err());
        assert_eq!(config.helper("docker.io"), None);
    }

    #[test]
    fn the_own_helper_of_a_host_comes_first() {
        let config = config(
            r#"{"credsStore": "desktop", "credHelpers": {"ghcr.io": "gh", "https://index.docker.io/v1/": "hub"}}"#,
        );
        assert_eq!(config.helper("ghcr.io"), Some("gh"));
        assert_eq!(config.helper("docker.io"), Some("hub"));
        assert_eq!(config.helper("quay.io"), Some("desktop"));
    }

    #[test]
    fn damage_is_reported_without_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert!(Config::read(&path).unwrap().is_none());
        std::fs::write(&path, r#"{"auths": {"a.b": {"auth": 5, "password": "hunter2"}}, "#).unwrap();
        let error = Config::read(&path).unwrap_err().to_string();
        assert!(error.contains("config.json is damaged") && !error.contains("hunter2"), "{error}");
        std::fs::write(&path, r#"{"auths": null, "credsStore": null, "credHelpers": null}"#).unwrap();
        assert_eq!(Config::read(&path).unwrap().unwrap().stored("a.b").unwrap(), None);
    }
}
