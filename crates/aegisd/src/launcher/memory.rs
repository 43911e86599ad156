//! The memory of instances on disk: `data/instances/<id>/memory/`, see `aegis_proto::saved`.
//!
//! **Invariants:** a saved VM is used once. Its description is gone, also after a crash of the host, before anything
//! changes the memory or the disk that it belongs to: here when it is given up, by the worker when a VM is started from
//! it. Until then what was taken comes back. Everything here that touches a `saved.json` holds one lock while it does.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use aegis_config::Home;
use aegis_proto::saved::{RAM_FILE, SAVED_FILE, STATE_FILE, SavedVm, TAKEN_FILE};
use aegis_types::{InstanceId, Mib};
use tokio::sync::Semaphore;
use tokio::task;

use super::{disk, files};
use crate::saved::{self, Unusable};

/// The memory directories of one home.
pub(super) struct Memories {
    home: Home,
    /// Held for a moment only, by blocking code.
    lock: Mutex<()>,
    /// One memory is written to the disk at a time: more would only make the disk seek.
    writing: Semaphore,
}

/// What there was of a saved VM. Only one that can be used is still on the disk.
#[derive(Debug)]
pub(super) enum Taken {
    /// Nothing.
    None,
    /// A saved VM to go on from. Its memory and device state are still in the directory.
    Saved(SavedVm),
    /// It could not be used.
    Unusable(Unusable),
}

impl Memories {
    pub(super) fn new(home: Home) -> Self {
        Self { home, lock: Mutex::default(), writing: Semaphore::new(1) }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().expect("no code panics while it holds this")
    }

    /// Whether there is a saved VM. There must be no worker.
    pub(super) fn has_saved(&self, id: &InstanceId) -> bool {
        let dir = self.home.memory_dir(id);
        self.put_back(&dir).is_ok() && matches!(saved::read(&dir), Ok(Some(_)))
    }

    /// Takes the saved VM for a worker that is about to be started, if there is one that fits this machine; removes one
    /// that does not.
    pub(super) fn take(&self, id: &InstanceId, machine: &str, memory: Mib) -> io::Result<Taken> {
        let dir = self.home.memory_dir(id);
        self.put_back(&dir)?;
        let found = match saved::read(&dir) {
            Ok(None) => return Ok(Taken::None),
            Ok(Some(saved)) => match saved::check(&dir, &saved, machine, memory) {
                Ok(()) if disk::exists(&self.home, id) => Taken::Saved(saved),
                Ok(()) => Taken::Unusable(Unusable::NoDisk),
                Err(e) => Taken::Unusable(e),
            },
            Err(e) => Taken::Unusable(e),
        };
        if let Taken::Unusable(_) = found {
            self.consume(&dir)?;
            files::remove_dir(&dir)?;
            return Ok(found);
        }
        let _lock = self.lock();
        fs::rename(dir.join(SAVED_FILE), dir.join(TAKEN_FILE))?;
        Ok(found)
    }

    /// What was taken and not used by a worker is as it was.
    fn put_back(&self, dir: &Path) -> io::Result<()> {
        let _lock = self.lock();
        match fs::rename(dir.join(TAKEN_FILE), dir.join(SAVED_FILE)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes a description, for good if it would be trusted after a crash of the host.
    fn consume(&self, dir: &Path) -> io::Result<()> {
        self.put_back(dir)?;
        let _lock = self.lock();
        let forgotten = matches!(saved::read(dir), Ok(None | Some(SavedVm { durable: false, .. })));
        files::remove_file(&dir.join(SAVED_FILE))?;
        if forgotten {
            return Ok(());
        }
        match files::flush(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes everything that is left of an instance's memory.
    pub(super) fn discard(&self, id: &InstanceId) -> io::Result<()> {
        let dir = self.home.memory_dir(id);
        self.consume(&dir)?;
        files::remove_dir(&dir)
    }

    /// An empty directory for the memory of a VM that is about to start.
    pub(super) fn make_empty(&self, id: &InstanceId) -> io::Result<()> {
        self.discard(id)?;
        files::make_dir(&self.home.memory_dir(id))
    }

    /// Removes the memory of a VM that ended without being saved: it is of no use. There must be no worker.
    pub(super) fn tidy(&self, id: &InstanceId) -> io::Result<()> {
        let dir = self.home.memory_dir(id);
        self.put_back(&dir)?;
        match saved::read(&dir) {
            Ok(None) => files::remove_dir(&dir),
            // A damaged one is reported at the next start.
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }

    /// Writes a saved VM to the disk and then says so in its description, unless it is used in the meantime.
    pub(super) async fn make_durable(self: Arc<Self>, id: InstanceId) {
        let Ok(_turn) = self.writing.acquire().await else { return };
        let (this, instance) = (Arc::clone(&self), id.clone());
        let written = task::spawn_blocking(move || this.write_to_disk(&id));
        match written.await.expect("writing files does not panic") {
            Ok(true) => tracing::debug!(%instance, "the saved memory is on the disk"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, %instance, "cannot bring the saved memory to the disk"),
        }
    }

    /// Whether it was still there and not yet durable.
    fn write_to_disk(&self, id: &InstanceId) -> io::Result<bool> {
        let dir = self.home.memory_dir(id);
        let Ok(Some(saved)) = saved::read(&dir) else { return Ok(false) };
        // What was not written before the host went down never will be.
        if saved.durable || saved.host_boot != saved::host_boot() {
            return Ok(false);
        }
        for path in [dir.join(RAM_FILE), dir.join(STATE_FILE), disk::path(&self.home, id)] {
            match files::flush(&path) {
                Ok(()) => {}
                // A start removed it.
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.mark_durable(&dir, &saved)
    }

    fn mark_durable(&self, dir: &Path, saved: &SavedVm) -> io::Result<bool> {
        {
            let _lock = self.lock();
            // As long as this very one is there no start has used it, and none can while we hold the lock.
            if !matches!(saved::read(dir), Ok(Some(found)) if found == *saved) {
                return Ok(false);
            }
            let durable = SavedVm { durable: true, ..saved.clone() };
            files::write_atomically(&dir.join(SAVED_FILE), &serde_json::to_vec(&durable)?)?;
        }
        // After a crash of the host before this there is the earlier description, or none: both are safe.
        let flushed = files::flush(&dir.join(SAVED_FILE)).and_then(|()| files::flush(dir));
        match flushed {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
            other => other.map(|()| true),
        }
    }

    /// Those of these instances whose saved VM is not known to be on the disk.
    pub(super) fn not_durable(&self, instances: &[InstanceId]) -> Vec<InstanceId> {
        let undecided = |id: &&InstanceId| {
            matches!(saved::read(&self.home.memory_dir(id)), Ok(Some(SavedVm { durable: false, .. })))
        };
        instances.iter().filter(undecided).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::saved::tests::leave;

    const MEMORY: u64 = 128;

    struct Fixture {
        _dir: tempfile::TempDir,
        home: Home,
        memories: Arc<Memories>,
    }

    impl Fixture {
        fn files(&self) -> Vec<String> {
            let entries = fs::read_dir(self.home.memory_dir(&id())).unwrap().flatten();
            let mut names: Vec<String> =
                entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    fn id() -> InstanceId {
        InstanceId::from_unix_nanos(1)
    }

    fn memory() -> Mib {
        Mib::new(MEMORY).unwrap()
    }

    /// An instance that was hibernated.
    fn fixture() -> (Fixture, SavedVm) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(dir.path().join("home"))).unwrap();
        files::make_dir(&home.memory_dir(&id())).unwrap();
        fs::write(disk::path(&home, &id()), "disk").unwrap();
        let saved = leave(&home.memory_dir(&id()), "m", memory());
        let memories = Arc::new(Memories::new(home.clone()));
        (Fixture { _dir: dir, home, memories }, saved)
    }

    /// What a worker does when it starts a VM.
    fn use_up(f: &Fixture) {
        fs::remove_file(f.home.memory_dir(&id()).join(TAKEN_FILE)).unwrap();
    }

    #[test]
    fn a_saved_vm_is_used_once() {
        let (f, saved) = fixture();
        assert!(f.memories.has_saved(&id()));
        let taken = f.memories.take(&id(), "m", memory()).unwrap();
        assert!(matches!(taken, Taken::Saved(found) if found == saved));
        assert_eq!(f.files(), ["ram", "state", "taken.json"]);
        use_up(&f);
        assert!(!f.memories.has_saved(&id()));
        assert_eq!(f.files(), ["ram", "state"]);
        assert!(matches!(f.memories.take(&id(), "m", memory()).unwrap(), Taken::None));
        f.memories.tidy(&id()).unwrap();
        assert!(!f.home.memory_dir(&id()).exists());
    }

    #[test]
    fn what_was_taken_and_not_used_comes_back() {
        let (f, saved) = fixture();
        for _ in 0..2 {
            let taken = f.memories.take(&id(), "m", memory()).unwrap();
            assert!(matches!(taken, Taken::Saved(found) if found == saved));
        }
        f.memories.tidy(&id()).unwrap();
        assert_eq!(f.files(), ["ram", "saved.json", "state"]);
        assert!(matches!(f.memories.take(&id(), "m", memory()).unwrap(), Taken::Saved(_)));
        assert!(f.memories.has_saved(&id()));
        assert!(matches!(f.memories.take(&id(), "m", memory()).unwrap(), Taken::Saved(_)));
        // Given up in this state as well.
        f.memories.make_empty(&id()).unwrap();
        assert!(!f.memories.has_saved(&id()) && f.files().is_empty());
    }

    #[test]
    fn one_that_does_not_fit_is_removed_with_its_memory() {
        let (f, _) = fixture();
        let taken = f.memories.take(&id(), "other", memory()).unwrap();
        assert!(matches!(taken, Taken::Unusable(Unusable::Machine)));
        assert!(!f.home.memory_dir(&id()).exists());
        let (f, _) = fixture();
        fs::remove_file(disk::path(&f.home, &id())).unwrap();
        assert!(matches!(f.memories.take(&id(), "m", memory()).unwrap(), Taken::Unusable(Unusable::NoDisk)));
        let (f, _) = fixture();
        fs::write(f.home.memory_dir(&id()).join(SAVED_FILE), "{").unwrap();
        assert!(!f.memories.has_saved(&id()));
        f.memories.tidy(&id()).unwrap();
        let taken = f.memories.take(&id(), "m", memory()).unwrap();
        assert!(matches!(taken, Taken::Unusable(Unusable::Description(_))));
        assert!(!f.home.memory_dir(&id()).exists());
    }

    #[tokio::test]
    async fn a_saved_vm_becomes_durable_and_stays_usable() {
        let (f, saved) = fixture();
        assert_eq!(f.memories.not_durable(&[id()]), [id()]);
        Arc::clone(&f.memories).make_durable(id()).await;
        assert!(f.memories.not_durable(&[id()]).is_empty());
        f.memories.tidy(&id()).unwrap();
        assert_eq!(f.files(), ["ram", "saved.json", "state"]);
        let taken = f.memories.take(&id(), "m", memory()).unwrap();
        assert!(matches!(taken, Taken::Saved(found) if found == SavedVm { durable: true, ..saved }));
    }

    #[test]
    fn what_was_used_in_the_meantime_does_not_come_back() {
        let (f, saved) = fixture();
        let dir = f.home.memory_dir(&id());
        assert!(matches!(f.memories.take(&id(), "m", memory()).unwrap(), Taken::Saved(_)));
        assert!(!f.memories.mark_durable(&dir, &saved).unwrap());
        use_up(&f);
        assert!(!f.memories.mark_durable(&dir, &saved).unwrap());
        assert_eq!(f.files(), ["ram", "state"]);
        // Saved again: another VM than the one whose files were written.
        let again = SavedVm { saved_unix_ns: 2, ..saved.clone() };
        fs::write(dir.join(SAVED_FILE), serde_json::to_vec(&again).unwrap()).unwrap();
        assert!(!f.memories.mark_durable(&dir, &saved).unwrap());
        assert_eq!(saved::read(&dir).unwrap(), Some(again));
        f.memories.discard(&id()).unwrap();
        f.memories.discard(&id()).unwrap();
        assert!(!f.memories.mark_durable(&dir, &saved).unwrap() && !dir.exists());
    }

    #[tokio::test]
    async fn one_of_an_earlier_boot_of_the_host_is_never_called_durable() {
        let (f, saved) = fixture();
        let dir = f.home.memory_dir(&id());
        let earlier = SavedVm { host_boot: "earlier".to_owned(), ..saved };
        fs::write(dir.join(SAVED_FILE), serde_json::to_vec(&earlier).unwrap()).unwrap();
        Arc::clone(&f.memories).make_durable(id()).await;
        let taken = f.memories.take(&id(), "m", memory()).unwrap();
        assert!(matches!(taken, Taken::Unusable(Unusable::NotDurable)));
    }
}
