//! One complete template on disk, and its memory while it is used. Everything here blocks.
//!
//! ```text
//! data/templates/<key>/
//!   ram, state, saved.json   see `aegis_proto::saved`
//!   upper.ext4               its disk at that moment
//!   template.json            what it was made of, for people
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aegis_proto::saved::{RAM_FILE, STATE_FILE, SavedVm};
use aegis_proto::worker::Restore;
use aegis_types::{Accelerator, ImageName, Mib, StartKind, Vcpus};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::key::Key;
use super::memory;
use crate::launcher::disk::DISK_FILE;
use crate::launcher::files::{self, Flush};
use crate::launcher::machine::Machine;
use crate::saved::{self, Unusable};
use crate::text::chain;

const ABOUT_FILE: &str = "template.json";
/// Uses are noted at most this often, in seconds.
const NOTE_EVERY: i64 = 60;

/// What a template was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) key: String,
    pub(super) image: ImageName,
    pub(super) image_digest: String,
    pub(super) memory: Mib,
    pub(super) vcpus: Vcpus,
    pub(super) accelerator: Accelerator,
    /// Length of the disk in bytes.
    pub(super) disk_bytes: u64,
    pub(super) created_at: Timestamp,
    pub(super) last_used_at: Timestamp,
}

/// A complete template. Whoever holds it keeps it from being pruned.
#[derive(Debug)]
pub(crate) struct Template {
    dir: PathBuf,
    key: Key,
    saved: SavedVm,
    about: Mutex<About>,
    /// Held while the memory is read from the disk: those who start at the same time share it.
    memory: Mutex<Option<Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    file: Arc<File>,
    used: Instant,
}

impl Template {
    /// Describes what a build left in `dir`.
    pub(super) fn describe(dir: &Path, key: &Key, machine: &Machine) -> io::Result<()> {
        let now = Timestamp::now();
        let about = About {
            key: key.as_str().to_owned(),
            image: machine.image.clone(),
            image_digest: machine.image_digest.clone(),
            memory: machine.memory,
            vcpus: machine.vcpus,
            accelerator: machine.accelerator,
            disk_bytes: fs::metadata(dir.join(DISK_FILE))?.len(),
            created_at: now,
            last_used_at: now,
        };
        files::write_atomically(&dir.join(ABOUT_FILE), &serde_json::to_vec_pretty(&about)?)
    }

    /// The template in this directory, as far as can be told without reading all of it.
    pub(super) fn open(dir: &Path, key: &Key) -> Result<Template, String> {
        let path = dir.join(ABOUT_FILE);
        let about: About = fs::read(&path)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        if about.key != key.as_str() {
            return Err(format!("{} belongs to another template", path.display()));
        }
        let saved = match saved::read(dir) {
            Ok(Some(saved)) => saved,
            Ok(None) => return Err("it has no saved VM".to_owned()),
            Err(e) => return Err(e.to_string()),
        };
        let template = Template {
            dir: dir.to_owned(),
            key: key.clone(),
            saved,
            about: Mutex::new(about),
            memory: Mutex::default(),
        };
        template.check().map_err(|e| chain(&e))?;
        Ok(template)
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn about(&self) -> MutexGuard<'_, About> {
        self.about.lock().expect("no code panics while it holds this")
    }

    fn memory(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.memory.lock().expect("no code panics while it holds this")
    }

    /// Checks that the files are what they were. Cheap: the memory is not read.
    pub(super) fn check(&self) -> Result<(), Unusable> {
        let (memory, expected) = {
            let about = self.about();
            (about.memory, about.disk_bytes)
        };
        saved::check(&self.dir, &self.saved, &self.saved.machine, memory)?;
        let path = self.dir.join(DISK_FILE);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == expected => Ok(()),
            Ok(_) => Err(Unusable::NoDisk),
            Err(source) => Err(Unusable::Io { path, source }),
        }
    }

    /// How a worker starts from it, given its memory.
    pub(crate) fn restore(&self) -> Restore {
        Restore { state: self.dir.join(STATE_FILE), kind: StartKind::Template, boot_id: None }
    }

    /// Its disk, to be copied for one VM.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join(DISK_FILE)
    }

    /// Copies its memory for one VM.
    pub(crate) fn copy_memory(&self, to: &Path) -> io::Result<()> {
        files::copy_sparse(&self.dir.join(RAM_FILE), to, 0, Flush::Later)
    }

    /// Its memory for VMs that map it, read from the disk if need be; and whether it was.
    pub(crate) fn sealed(&self) -> io::Result<(Arc<File>, bool)> {
        let mut memory = self.memory();
        let used = Instant::now();
        if let Some(loaded) = memory.as_mut() {
            loaded.used = used;
            return Ok((Arc::clone(&loaded.file), false));
        }
        let file = Arc::new(memory::seal(&self.dir.join(RAM_FILE))?);
        *memory = Some(Loaded { file: Arc::clone(&file), used });
        Ok((file, true))
    }

    /// Lets go of the memory if no VM was started from it for this long. VMs that run keep their mapping. Says for how
    /// long it is still kept.
    pub(super) fn unload(&self, idle: Duration) -> Option<Duration> {
        let mut memory = self.memory();
        let rest = idle.checked_sub(memory.as_ref()?.used.elapsed()).filter(|rest| !rest.is_zero());
        if rest.is_none() {
            *memory = None;
        }
        rest
    }

    /// Whether its memory is in memory. Not while it is being read.
    pub(super) fn is_loaded(&self) -> bool {
        self.memory.try_lock().is_ok_and(|memory| memory.is_some())
    }

    /// Notes that it was used, on the disk now and then.
    pub(super) fn touch(&self) {
        let text = {
            let mut about = self.about();
            let now = Timestamp::now();
            if now.as_second() - about.last_used_at.as_second() < NOTE_EVERY {
                return;
            }
            about.last_used_at = now;
            serde_json::to_vec_pretty(&*about)
        };
        let noted = text
            .map_err(io::Error::from)
            .and_then(|text| files::write_atomically(&self.dir.join(ABOUT_FILE), &text));
        if let Err(error) = noted {
            tracing::warn!(%error, template = %self.key, "cannot note the use of a template");
        }
    }

    /// Bytes that its files take on the disk.
    pub(super) fn size(&self) -> u64 {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    }
}
