//! Secrets: stored encrypted, given to the commands of instances at each boot, kept out of their logs, and each of these
//! told in the audit log.
//!
//! ```text
//! master.key                 the key of everything below; or in the keychain
//! data/aegis.db              `secrets`, `secrets_key`, `instance_secrets`: ciphertext and names
//! data/logs/audit.ndjson     who was given which when
//! ```
//! **Invariants:** a value leaves this module to the guest link, to a log's mask and to whoever reveals it; never to a file, a
//! command line or a log. What an instance is given is looked up at each boot and recorded, encrypted, before its
//! command runs: the next daemon masks the same values.

mod audit;
mod cipher;
mod environment;
mod key_store;
mod resolve;
mod vault;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use aegis_api::{AuditEntry, AuditEvent};
use aegis_config::{Home, KeyStoreSetting};
use aegis_lifecycle::ports::Injection;
use aegis_lifecycle::record::InstanceSpec;
use aegis_store::{Store, StoreError};
use aegis_types::{InstanceId, SecretBytes, SecretName, SecretUse, VmId, WantedSecrets};
use jiff::Timestamp;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task;

use crate::logs::{LogStore, Mask};
use audit::Audit;
use key_store::{KeyFile, KeyStore, Keychain};
use resolve::{Resolved, TOTAL_MAX};
use vault::Vault;
pub(crate) use vault::VaultError;

/// Lines of the audit log that are shown.
const AUDIT_SHOWN: usize = 1000;

/// An instance cannot have what it wants.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InjectError {
    #[error("it needs secret `{0}`, which is not stored")]
    NotStored(SecretName),
    #[error("secret `{0}` cannot be a variable: it is not text, or has a NUL byte; give it as a file")]
    NotText(SecretName),
    #[error("its secrets are too large together: at most {} KiB", TOTAL_MAX >> 10)]
    TooLarge,
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("cannot write the audit log")]
    Audit(#[source] io::Error),
}

impl InjectError {
    /// What the user can do.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotStored(name) => {
                Some(format!("`aegis secret set {name}` reads the value from the terminal"))
            }
            Self::Vault(error) => locked_hint(error),
            Self::NotText(_) | Self::TooLarge | Self::Audit(_) => None,
        }
    }
}

/// What can be done about secrets that cannot be opened.
pub(crate) fn locked_hint(error: &VaultError) -> Option<String> {
    match error {
        VaultError::Missing { .. } | VaultError::Wrong { .. } => Some(
            "put the key back from a backup; nothing was changed. Without it the stored secrets are lost: \
             docs/design/secrets.md says how to begin anew"
                .to_owned(),
        ),
        VaultError::Key(_) => Some("the setting `secrets.key_store` says where the key is".to_owned()),
        VaultError::Damaged(name) => Some(format!("store it again: `aegis secret set {name}`")),
        VaultError::Store(_) => None,
    }
}

/// See the module.
pub(crate) struct Secrets {
    vault: Vault,
    store: Store,
    audit: Arc<Audit>,
    logs: Arc<LogStore>,
    changing: Mutex<()>,
}

impl Secrets {
    /// Takes up what an earlier daemon left: from now on the values of live instances are kept out of their logs.
    ///
    /// # Errors
    /// The registry cannot be read. A key that is not there is no error before somebody needs it.
    pub(crate) async fn open(
        home: &Home,
        key_store: KeyStoreSetting,
        store: Store,
        logs: Arc<LogStore>,
    ) -> Result<Self, StoreError> {
        let keys: Arc<dyn KeyStore> = match key_store {
            KeyStoreSetting::File => Arc::new(KeyFile::new(home.master_key())),
            KeyStoreSetting::Keychain => Arc::new(Keychain::new(home.root().to_owned())),
        };
        store.forget_secrets(None).await?;
        let audit = Arc::new(Audit::new(&home.logs()));
        let secrets =
            Self { vault: Vault::new(store.clone(), keys), store, audit, logs, changing: Mutex::default() };
        for (id, values) in secrets.vault.injected().await? {
            let mask = values.map_or(Mask::Everything, |values| Mask::of(&values));
            secrets.logs.mask(&id, mask).await;
        }
        Ok(secrets)
    }

    async fn note(&self, entry: AuditEntry) -> io::Result<()> {
        let audit = Arc::clone(&self.audit);
        task::spawn_blocking(move || audit.append(&entry)).await.expect("writing a line does not panic")
    }

    /// A change that was made is not undone because it could not be noted.
    async fn note_change(&self, event: AuditEvent, name: Option<&SecretName>) {
        if let Err(error) = self.note(entry(event, name)).await {
            tracing::error!(%error, %event, "cannot write the audit log");
        }
    }

    pub(crate) async fn set(&self, name: SecretName, value: &SecretBytes) -> Result<Timestamp, VaultError> {
        let at = self.vault.set(name.clone(), value).await?;
        self.note_change(AuditEvent::Set, Some(&name)).await;
        Ok(at)
    }

    pub(crate) async fn list(&self) -> Result<Vec<(SecretName, Timestamp)>, VaultError> {
        self.vault.list().await
    }

    /// Whether there was one.
    pub(crate) async fn delete(&self, name: SecretName) -> Result<bool, VaultError> {
        let deleted = self.vault.delete(name.clone()).await?;
        if deleted {
            self.note_change(AuditEvent::Deleted, Some(&name)).await;
        }
        Ok(deleted)
    }

    /// The value of a secret; `None` if there is none. Nothing is shown that could not be noted.
    pub(crate) async fn reveal(&self, name: &SecretName) -> Result<Option<SecretBytes>, InjectError> {
        let Some(value) = self.vault.open(|other| other == name).await?.remove(name) else { return Ok(None) };
        self.note(entry(AuditEvent::Revealed, Some(name))).await.map_err(InjectError::Audit)?;
        Ok(Some(value))
    }

    /// Encrypts everything with a new key. Number of secrets.
    pub(crate) async fn rotate(&self) -> Result<usize, VaultError> {
        let count = self.vault.rotate().await?;
        self.note_change(AuditEvent::Rotated, None).await;
        Ok(count)
    }

    /// The newest lines of the audit log.
    pub(crate) async fn audited(&self) -> io::Result<Vec<AuditEntry>> {
        let audit = Arc::clone(&self.audit);
        task::spawn_blocking(move || audit.newest(AUDIT_SHOWN)).await.expect("reading does not panic")
    }

    /// Held from the look at a list of wanted secrets to its replacement, so that no change is lost.
    pub(crate) async fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Which secrets an instance wants.
    pub(crate) async fn wanted(&self, id: &InstanceId) -> Result<WantedSecrets, StoreError> {
        self.store.load_wanted(id.clone()).await
    }

    /// Keeps which secrets an instance wants, for its next boot.
    pub(crate) async fn want(&self, id: &InstanceId, wanted: WantedSecrets) -> Result<(), StoreError> {
        self.store.save_wanted(id.clone(), wanted).await
    }

    /// Removes what was kept of an instance that was not created after all.
    pub(crate) async fn forget(&self, id: &InstanceId) {
        if let Err(error) = self.store.forget_secrets(Some(id.clone())).await {
            tracing::warn!(%error, instance = %id, "the next start of the daemon removes what is left of it");
        }
    }

    /// Whether a boot could have all this now. What is missing but need not be there.
    pub(crate) async fn check(&self, wanted: &WantedSecrets) -> Result<Vec<String>, InjectError> {
        self.resolve(wanted).await.map(|resolved| resolved.notes)
    }

    async fn resolve(&self, wanted: &WantedSecrets) -> Result<Resolved, InjectError> {
        if wanted.is_empty() {
            return Ok(Resolved::default());
        }
        let all = wanted.variables.contains(&SecretUse::All);
        let named: Vec<SecretName> = wanted
            .variables
            .iter()
            .filter_map(|wanted| match wanted {
                SecretUse::One { secret, .. } => Some(secret.clone()),
                SecretUse::All => None,
            })
            .chain(wanted.files.iter().map(|file| file.secret.clone()))
            .collect();
        let picked = |name: &SecretName| (all && name.is_variable()) || named.contains(name);
        Resolved::new(wanted, &self.vault.open(picked).await?)
    }

    /// The environment of a command above that of its image, and its files. From now on its values are kept out of
    /// the instance's log.
    ///
    /// # Errors
    /// Something that it needs cannot be had.
    pub(crate) async fn inject(
        &self,
        spec: &InstanceSpec,
        vm: &VmId,
        image: &BTreeMap<String, String>,
    ) -> Result<Injection, InjectError> {
        let wanted = self.wanted(&spec.id).await.map_err(VaultError::from)?;
        let resolved = self.resolve(&wanted).await?;
        let values = resolved.values();
        self.vault.save_injected(&spec.id, &values).await?;
        self.logs.mask(&spec.id, Mask::of(&values)).await;
        if !resolved.names.is_empty() {
            let entry = AuditEntry {
                secrets: resolved.names.clone(),
                instance_id: Some(spec.id.clone()),
                handle: spec.handle.clone(),
                vm_id: Some(vm.clone()),
                ..entry(AuditEvent::Injected, None)
            };
            self.note(entry).await.map_err(InjectError::Audit)?;
        }
        let mut secrets: BTreeMap<String, String> = resolved
            .variables
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.expose_text()?.to_owned())))
            .collect();
        let env = environment::environment(image, &secrets, &spec.env);
        secrets.values_mut().for_each(zeroize::Zeroize::zeroize);
        Ok(Injection {
            command: Vec::new(),
            workdir: None,
            user: None,
            env,
            secret_files: resolved.files,
            notes: resolved.notes,
        })
    }
}

fn entry(event: AuditEvent, name: Option<&SecretName>) -> AuditEntry {
    AuditEntry {
        ts: Timestamp::now(),
        event,
        secrets: name.map(ToString::to_string).into_iter().collect(),
        instance_id: None,
        handle: None,
        vm_id: None,
    }
}
