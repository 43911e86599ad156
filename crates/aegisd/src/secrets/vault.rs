//! Stored secrets, and the key that opens them.
//!
//! **Invariants:** a key is made only while nothing is encrypted. Whatever cannot be opened is left as it is. One task at a
//! time reads or writes, so that no value is ever stored with a key that is on its way out.

use std::collections::BTreeMap;
use std::sync::Arc;

use aegis_store::{Sealed, SecretRow, Store, StoreError};
use aegis_types::{InstanceId, SecretBytes, SecretName};
use jiff::Timestamp;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task;

use super::cipher::{MasterKey, Purpose};
use super::key_store::{KeyStore, KeyStoreError, Place};

/// Secrets cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("the master key is missing: it should be in {place}")]
    Missing { place: String },
    #[error("the master key in {place} is not the one that the stored secrets were encrypted with")]
    Wrong { place: String },
    #[error(transparent)]
    Key(#[from] KeyStoreError),
    #[error("secret `{0}` is damaged: it does not open with the master key")]
    Damaged(SecretName),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// See the module.
pub(super) struct Vault {
    store: Store,
    keys: Arc<dyn KeyStore>,
    /// Empty until the first use, and after a use that could not say what the right key is.
    key: Mutex<Option<MasterKey>>,
}

impl Vault {
    pub(super) fn new(store: Store, keys: Arc<dyn KeyStore>) -> Self {
        Self { store, keys, key: Mutex::default() }
    }

    /// Runs what blocks.
    async fn keys<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn KeyStore) -> Result<T, KeyStoreError> + Send + 'static,
    ) -> Result<T, KeyStoreError> {
        let keys = Arc::clone(&self.keys);
        task::spawn_blocking(move || work(&*keys)).await.expect("reading a key does not panic")
    }

    /// The key, for as long as the guard is held.
    async fn unlock(&self) -> Result<(MutexGuard<'_, Option<MasterKey>>, MasterKey), VaultError> {
        let mut held = self.key.lock().await;
        let key = match &*held {
            Some(key) => key.clone(),
            None => held.insert(self.find_key().await?).clone(),
        };
        Ok((held, key))
    }

    async fn find_key(&self) -> Result<MasterKey, VaultError> {
        let Sealed { check, secrets, injected } = self.store.load_sealed().await?;
        let unused = secrets.is_empty() && injected.is_empty();
        let current = self.keys(|keys| keys.load(Place::Current)).await?;
        let next = self.keys(|keys| keys.load(Place::Next)).await?;
        let fits = |key: &MasterKey| check.as_ref().is_some_and(|check| key.is_checked_by(check));
        let key = match (current, next) {
            (Some(current), next) if fits(&current) => {
                if next.is_some() {
                    // A change of the key that was cut short before anything was encrypted with it.
                    self.keys(|keys| keys.discard_next()).await?;
                }
                return Ok(current);
            }
            (_, Some(next)) if fits(&next) => {
                // One that was cut short afterwards.
                self.keys(|keys| keys.promote()).await?;
                return Ok(next);
            }
            // Nothing is encrypted: any key will do, and one that is there is not thrown away.
            (Some(current), _) if unused => current,
            (None, None) if unused => {
                let key = MasterKey::random();
                let made = key.clone();
                self.keys(move |keys| keys.store(Place::Current, &made)).await?;
                tracing::info!(place = self.keys.place(), "made a master key");
                key
            }
            (None, None) => return Err(VaultError::Missing { place: self.keys.place() }),
            _ => return Err(VaultError::Wrong { place: self.keys.place() }),
        };
        self.store.replace_sealed(Sealed { check: Some(key.check()), ..Sealed::default() }).await?;
        Ok(key)
    }

    /// Stores a value, in place of an older one.
    pub(super) async fn set(&self, name: SecretName, value: &SecretBytes) -> Result<Timestamp, VaultError> {
        let (_held, key) = self.unlock().await?;
        let created_at = Timestamp::now();
        let value = key.seal(Purpose::Secret(name.as_str()), value.expose());
        self.store.save_secret(SecretRow { name, value, created_at }).await?;
        Ok(created_at)
    }

    /// Names and times of all, by name. Needs no key.
    pub(super) async fn list(&self) -> Result<Vec<(SecretName, Timestamp)>, VaultError> {
        let rows = self.store.load_secrets().await?;
        Ok(rows.into_iter().map(|row| (row.name, row.created_at)).collect())
    }

    /// Whether there was one. Needs the key, so that nobody deletes what only seems to be useless.
    pub(super) async fn delete(&self, name: SecretName) -> Result<bool, VaultError> {
        let (_held, _) = self.unlock().await?;
        Ok(self.store.delete_secret(name).await?)
    }

    /// The values of all secrets that `wanted` picks. One that does not open is an error only then.
    pub(super) async fn open(
        &self,
        wanted: impl Fn(&SecretName) -> bool,
    ) -> Result<BTreeMap<SecretName, SecretBytes>, VaultError> {
        let (_held, key) = self.unlock().await?;
        let rows = self.store.load_secrets().await?;
        let opened = rows.into_iter().filter(|row| wanted(&row.name)).map(|row| {
            match key.open(Purpose::Secret(row.name.as_str()), &row.value) {
                Ok(value) => Ok((row.name, value)),
                Err(_) => Err(VaultError::Damaged(row.name)),
            }
        });
        opened.collect()
    }

    /// Keeps the values that the current boot of an instance was given.
    pub(super) async fn save_injected(
        &self,
        id: &InstanceId,
        values: &[SecretBytes],
    ) -> Result<(), VaultError> {
        if values.is_empty() {
            return Ok(self.store.save_injected(id.clone(), None).await?);
        }
        let (_held, key) = self.unlock().await?;
        let text = zeroize::Zeroizing::new(serde_json::to_vec(values).expect("values serialise"));
        let sealed = key.seal(Purpose::Injected(id.as_str()), &text);
        Ok(self.store.save_injected(id.clone(), Some(sealed)).await?)
    }

    /// What the current boots of instances were given; `None` for an instance where that cannot be said.
    pub(super) async fn injected(&self) -> Result<Vec<(InstanceId, Option<Vec<SecretBytes>>)>, StoreError> {
        let sealed = self.store.load_sealed().await?.injected;
        if sealed.is_empty() {
            return Ok(Vec::new());
        }
        let key = match self.unlock().await {
            Ok((_held, key)) => Some(key),
            Err(error) => {
                tracing::error!(
                    "{}: what instances print is not kept until it is there",
                    crate::text::chain(&error)
                );
                None
            }
        };
        let opened = sealed.into_iter().map(|(id, sealed)| {
            let opened = key.as_ref().and_then(|key| key.open(Purpose::Injected(id.as_str()), &sealed).ok());
            let values = opened.and_then(|text| serde_json::from_slice(text.expose()).ok());
            (id, values)
        });
        Ok(opened.collect())
    }

    /// Encrypts everything with a new key. Cut short anywhere, it leaves either key with what it opens.
    pub(super) async fn rotate(&self) -> Result<usize, VaultError> {
        let (mut held, old) = self.unlock().await?;
        let sealed = self.store.load_sealed().await?;
        let new = MasterKey::random();
        let mut resealed = Sealed { check: Some(new.check()), ..Sealed::default() };
        for (name, value) in sealed.secrets {
            let purpose = Purpose::Secret(name.as_str());
            let value = old.open(purpose, &value).map_err(|_| VaultError::Damaged(name.clone()))?;
            let value = new.seal(purpose, value.expose());
            resealed.secrets.push((name, value));
        }
        for (id, value) in sealed.injected {
            let purpose = Purpose::Injected(id.as_str());
            // One that does not open has been of no use before.
            if let Ok(value) = old.open(purpose, &value) {
                let value = new.seal(purpose, value.expose());
                resealed.injected.push((id, value));
            }
        }
        let count = resealed.secrets.len();
        // From here on it is known again which key is right when all is done, or by the check.
        *held = None;
        let staged = new.clone();
        self.keys(move |keys| keys.store(Place::Next, &staged)).await?;
        self.store.replace_sealed(resealed).await?;
        self.keys(|keys| keys.promote()).await?;
        *held = Some(new);
        Ok(count)
    }
}

#[cfg(test)]
#[path = "vault_tests.rs"]
mod tests;
