#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use aegis_types::WantedSecrets;

use super::super::key_store::KeyFile;
use super::*;

fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

fn value(text: &str) -> SecretBytes {
    SecretBytes::from(text.to_owned())
}

fn key_file(dir: &Path) -> Arc<dyn KeyStore> {
    Arc::new(KeyFile::new(dir.join("master.key")))
}

fn open(dir: &Path) -> Vault {
    Vault::new(Store::open(&dir.join("aegis.db")).unwrap(), key_file(dir))
}

async fn read(vault: &Vault, wanted: &str) -> String {
    let opened = vault.open(|other| other.as_str() == wanted).await.unwrap();
    opened[&name(wanted)].expose_text().unwrap().to_owned()
}

/// Everything in the directory, byte by byte.
fn contents(dir: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    files.flatten().collect()
}

#[tokio::test]
async fn secrets_are_kept_encrypted_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(dir.path());
    assert!(!dir.path().join("master.key").exists(), "there is no key before it is needed");
    vault.set(name("A"), &value("first-value-of-a")).await.unwrap();
    vault.set(name("A"), &value("second-value-of-a")).await.unwrap();
    vault.set(name("B"), &value("value-of-b")).await.unwrap();
    let id = InstanceId::from_unix_nanos(1);
    vault.store.save_wanted(id.clone(), WantedSecrets::default()).await.unwrap();
    vault.save_injected(&id, &[value("value-of-b")]).await.unwrap();
    vault.store.close().await;
    for plain in ["first-value-of-a", "second-value-of-a", "value-of-b"] {
        assert!(!contents(dir.path()).windows(plain.len()).any(|part| part == plain.as_bytes()));
    }
    let vault = open(dir.path());
    assert_eq!(read(&vault, "A").await, "second-value-of-a");
    assert_eq!(vault.injected().await.unwrap(), [(id, Some(vec![value("value-of-b")]))]);
    assert!(vault.delete(name("A")).await.unwrap() && !vault.delete(name("A")).await.unwrap());
    let names: Vec<_> = vault.list().await.unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [name("B")]);
}

#[tokio::test]
async fn a_missing_or_wrong_key_is_told_and_nothing_is_destroyed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    let vault = open(dir.path());
    vault.set(name("A"), &value("value-of-a")).await.unwrap();
    vault.store.close().await;
    let right = std::fs::read(&path).unwrap();
    for (wrong, expected) in [
        (None, "the master key is missing: it should be in"),
        (Some(&[7; 32][..]), "is not the one that the stored secrets were encrypted with"),
        (Some(&right[..31]), "31 bytes instead of 32"),
    ] {
        std::fs::remove_file(&path).unwrap();
        if let Some(wrong) = wrong {
            std::fs::write(&path, wrong).unwrap();
        }
        let vault = open(dir.path());
        for error in [
            vault.set(name("B"), &value("value-of-b")).await.map(drop).unwrap_err(),
            vault.open(|_| true).await.map(drop).unwrap_err(),
            vault.delete(name("A")).await.map(drop).unwrap_err(),
            vault.rotate().await.map(drop).unwrap_err(),
        ] {
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert_eq!(vault.list().await.unwrap().len(), 1);
        assert_eq!(std::fs::read(&path).ok().as_deref(), wrong, "nothing was put in its place");
        // Back without a restart.
        std::fs::write(&path, &right).unwrap();
        assert_eq!(read(&vault, "A").await, "value-of-a");
        vault.store.close().await;
    }
}

#[tokio::test]
async fn a_lost_key_without_secrets_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(dir.path());
    vault.set(name("A"), &value("value")).await.unwrap();
    vault.delete(name("A")).await.unwrap();
    std::fs::remove_file(dir.path().join("master.key")).unwrap();
    vault.store.close().await;
    let vault = open(dir.path());
    vault.set(name("A"), &value("value")).await.unwrap();
    assert_eq!(read(&vault, "A").await, "value");
}

#[tokio::test]
async fn one_damaged_secret_spoils_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(dir.path());
    for secret in ["A", "B"] {
        vault.set(name(secret), &value(secret)).await.unwrap();
    }
    // The value of A under the name of B.
    let (rows, at) = (vault.store.load_secrets().await.unwrap(), Timestamp::now());
    let moved = SecretRow { name: name("B"), value: rows[0].value.clone(), created_at: at };
    vault.store.save_secret(moved).await.unwrap();
    assert_eq!(read(&vault, "A").await, "A");
    for error in
        [vault.open(|_| true).await.map(drop).unwrap_err(), vault.rotate().await.map(drop).unwrap_err()]
    {
        assert_eq!(error.to_string(), "secret `B` is damaged: it does not open with the master key");
    }
    vault.set(name("B"), &value("again")).await.unwrap();
    vault.rotate().await.unwrap();
    assert_eq!((read(&vault, "A").await, read(&vault, "B").await), ("A".to_owned(), "again".to_owned()));
}

/// Stops working before one of its calls, or after it, as a daemon does that is killed there.
struct Mortal {
    keys: Arc<dyn KeyStore>,
    steps: AtomicUsize,
}

impl Mortal {
    fn step<T>(&self, work: impl FnOnce() -> Result<T, KeyStoreError>) -> Result<T, KeyStoreError> {
        let dead = || KeyStoreError::Keychain("killed".to_owned());
        let live = || self.steps.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        live().map_err(|_| dead())?;
        let done = work()?;
        live().map_err(|_| dead())?;
        Ok(done)
    }
}

impl KeyStore for Mortal {
    fn place(&self) -> String {
        self.keys.place()
    }
    fn load(&self, place: Place) -> Result<Option<MasterKey>, KeyStoreError> {
        self.step(|| self.keys.load(place))
    }
    fn store(&self, place: Place, key: &MasterKey) -> Result<(), KeyStoreError> {
        self.step(|| self.keys.store(place, key))
    }
    fn promote(&self) -> Result<(), KeyStoreError> {
        self.step(|| self.keys.promote())
    }
    fn discard_next(&self) -> Result<(), KeyStoreError> {
        self.step(|| self.keys.discard_next())
    }
}

#[tokio::test]
async fn a_change_of_the_key_may_be_cut_short_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(dir.path());
    let id = InstanceId::from_unix_nanos(1);
    vault.set(name("A"), &value("value-of-a")).await.unwrap();
    vault.store.save_wanted(id.clone(), WantedSecrets::default()).await.unwrap();
    vault.save_injected(&id, &[value("value-of-a")]).await.unwrap();
    vault.store.close().await;
    let mut finished = false;
    let mut keys = Vec::new();
    for steps in 0.. {
        let store = Store::open(&dir.path().join("aegis.db")).unwrap();
        let mortal = Mortal { keys: key_file(dir.path()), steps: AtomicUsize::new(steps) };
        let vault = Vault::new(store, Arc::new(mortal));
        finished = vault.rotate().await.is_ok();
        vault.store.close().await;
        // The next daemon.
        let vault = open(dir.path());
        assert_eq!(read(&vault, "A").await, "value-of-a", "after {steps} steps");
        let injected = [(id.clone(), Some(vec![value("value-of-a")]))];
        assert_eq!(vault.injected().await.unwrap(), injected, "after {steps} steps");
        assert!(!dir.path().join("master.key.next").exists());
        vault.store.close().await;
        keys.push(std::fs::read(dir.path().join("master.key")).unwrap());
        if finished {
            break;
        }
    }
    keys.dedup();
    // What was cut short before anything was encrypted changed nothing, and everything later did.
    assert!(finished && keys.len() >= 3, "{} keys", keys.len());
}

#[tokio::test]
async fn a_change_of_the_key_whose_caller_goes_away_leaves_what_opens() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(dir.path());
    vault.set(name("A"), &value("value-of-a")).await.unwrap();
    for polls in 0..40 {
        let mut rotating = Box::pin(vault.rotate());
        for _ in 0..polls {
            if futures::poll!(rotating.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(rotating);
        assert_eq!(read(&vault, "A").await, "value-of-a");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_lose_nothing_while_the_key_changes() {
    let dir = tempfile::tempdir().unwrap();
    let vault = Arc::new(open(dir.path()));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let vault = Arc::clone(&vault);
        writers.spawn(async move {
            for round in 0..10 {
                vault.set(name(&format!("OWN_{writer}")), &value(&format!("{round}"))).await.unwrap();
                vault.set(name("SHARED"), &value(&format!("{writer}/{round}"))).await.unwrap();
                if round % 4 == 0 {
                    vault.rotate().await.unwrap();
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    vault.store.close().await;
    let vault = open(dir.path());
    for writer in 0..8 {
        assert_eq!(read(&vault, &format!("OWN_{writer}")).await, "9");
    }
    assert!(read(&vault, "SHARED").await.ends_with("/9"));
    assert_eq!(vault.list().await.unwrap().len(), 9);
}
