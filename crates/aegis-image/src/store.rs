//! Images on disk, by content and by name.
//!
//! ```text
//! <dir>/                    0700
//!   sha256_<hex>/root.erofs one per distinct image; the directory appears complete or not at all
//!   names/<name>.json       0600, which image a name means; replaced by renaming
//!   .import-*/              builds under way
//!   .lock                   shared while importing, exclusive while removing what crashed imports left
//! ```
//!
//! Any number of processes may use one store at a time: everything others see appears by a rename. All calls block;
//! an import takes as long as its archive.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aegis_types::ImageName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::convert::build_erofs;
use crate::error::ImageError;
use crate::limits::Limits;

const IMAGE_FILE: &str = "root.erofs";
const NAMES: &str = "names";
const LOCK: &str = ".lock";
const IMPORT_PREFIX: &str = ".import-";
const RECORD_SUFFIX: &str = ".json";

/// A directory of images.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// An image as a name finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The name it was imported under.
    pub name: ImageName,
    /// `sha256:` and the hex digest of the image file.
    pub digest: String,
    /// Length of the image file.
    pub size_bytes: u64,
    /// When the name was given to this image.
    pub created_at: Timestamp,
    /// The image file; valid as long as the store keeps the image.
    pub path: PathBuf,
}

/// What a name record holds.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    name: ImageName,
    digest: ImageDigest,
    size_bytes: u64,
    created_at: Timestamp,
}

/// `sha256:<64 lower-case hex digits>`; checked, because it becomes a path.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct ImageDigest(String);

impl Store {
    /// Opens the store at `dir`, creating it (mode 0700) and removing what interrupted imports left behind.
    ///
    /// # Errors
    /// [`ImageError::File`] if the directory cannot be made or read.
    pub fn open(dir: &Path) -> Result<Store, ImageError> {
        let store = Store { dir: dir.to_owned() };
        for dir in [dir.to_owned(), dir.join(NAMES)] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(file_error("create", &dir))?;
        }
        store.remove_leftovers()?;
        Ok(store)
    }

    /// Builds an image from `tar` (plain or gzip) under the default [`Limits`] and gives it `name`, which may have
    /// meant another image before. An archive that gives an image already stored only adds the name.
    ///
    /// # Errors
    /// As [`build_erofs`]; [`ImageError::File`] if the store cannot be written. On error the store is unchanged.
    pub fn import(&self, name: &ImageName, tar: impl Read) -> Result<ImageInfo, ImageError> {
        let lock = self.lock_file()?;
        lock.lock_shared().map_err(file_error("lock", &self.dir.join(LOCK)))?;
        let temp = tempfile::Builder::new()
            .prefix(IMPORT_PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.dir)
            .map_err(file_error("create a directory in", &self.dir))?;
        let built = temp.path().join(IMAGE_FILE);
        let summary = build_erofs(tar, &built, &Limits::default())?;
        let digest = ImageDigest::of(&built).map_err(file_error("read", &built))?;
        self.adopt(temp.path(), &digest)?;
        let record = Record {
            name: name.clone(),
            digest,
            size_bytes: summary.size_bytes,
            created_at: Timestamp::now(),
        };
        self.write_record(&record)?;
        Ok(self.info(record))
    }

    /// All images, by name. Names whose image is gone or whose record is damaged are left out, with a warning in the
    /// log.
    ///
    /// # Errors
    /// [`ImageError::File`] if the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let names = self.dir.join(NAMES);
        let mut images = Vec::new();
        for entry in fs::read_dir(&names).map_err(file_error("read", &names))? {
            let path = entry.map_err(file_error("read", &names))?.path();
            if !path.as_os_str().as_encoded_bytes().ends_with(RECORD_SUFFIX.as_bytes()) {
                continue; // a record being written
            }
            match self.read_record(&path).and_then(|record| record.map(|r| self.checked(r)).transpose()) {
                Ok(Some(image)) => images.push(image),
                Ok(None) => {} // removed since the listing
                Err(error @ ImageError::File { .. }) => return Err(error),
                Err(error) => tracing::warn!(%error, "image left out of the list"),
            }
        }
        images.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        Ok(images)
    }

    /// The image that `name` means, or `None` if there is no such name.
    ///
    /// # Errors
    /// [`ImageError::MissingImage`] or [`ImageError::DamagedRecord`] if the store was tampered with.
    pub fn resolve(&self, name: &ImageName) -> Result<Option<ImageInfo>, ImageError> {
        let path = self.record_path(name);
        match self.read_record(&path)? {
            Some(record) if record.name == *name => self.checked(record).map(Some),
            Some(_) => Err(ImageError::DamagedRecord { path, source: None }),
            None => Ok(None),
        }
    }

    /// Moves a finished build to where its digest says, unless it is there already.
    fn adopt(&self, built: &Path, digest: &ImageDigest) -> Result<(), ImageError> {
        let target = self.dir.join(digest.directory());
        let write = |path: &Path| file_error("create", path);
        match fs::rename(built, &target) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                // The same bytes. Renaming the file over the old one also repairs an image that lost some.
                let image = target.join(IMAGE_FILE);
                fs::rename(built.join(IMAGE_FILE), &image).map_err(write(&image))?;
            }
            Err(e) => return Err(write(&target)(e)),
        }
        sync_dir(&target)?;
        sync_dir(&self.dir)
    }

    fn write_record(&self, record: &Record) -> Result<(), ImageError> {
        let names = self.dir.join(NAMES);
        let path = self.record_path(&record.name);
        let bytes = serde_json::to_vec(record).expect("a record has only string keys");
        let write = || -> io::Result<()> {
            let mut temp = tempfile::Builder::new()
                .prefix(IMPORT_PREFIX)
                .permissions(Permissions::from_mode(0o600))
                .tempfile_in(&names)?;
            temp.write_all(&bytes)?;
            temp.as_file().sync_all()?;
            temp.persist(&path)?;
            Ok(())
        };
        write().map_err(file_error("write", &path))?;
        sync_dir(&names)
    }

    fn read_record(&self, path: &Path) -> Result<Option<Record>, ImageError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(file_error("read", path)(e)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| ImageError::DamagedRecord { path: path.to_owned(), source: Some(e) })
    }

    /// The image of a record, if its file is there and as long as it was.
    fn checked(&self, record: Record) -> Result<ImageInfo, ImageError> {
        let info = self.info(record);
        match fs::symlink_metadata(&info.path) {
            Ok(meta) if meta.is_file() && meta.len() == info.size_bytes => Ok(info),
            Err(e) if e.kind() != ErrorKind::NotFound => Err(file_error("read", &info.path)(e)),
            _ => Err(ImageError::MissingImage { name: info.name, path: info.path }),
        }
    }

    fn info(&self, record: Record) -> ImageInfo {
        let Record { name, digest, size_bytes, created_at } = record;
        let path = self.dir.join(digest.directory()).join(IMAGE_FILE);
        ImageInfo { name, digest: digest.0, size_bytes, created_at, path }
    }

    fn record_path(&self, name: &ImageName) -> PathBuf {
        // Names never hold `+` and never start with a dot, so this is one plain file per name.
        let file = name.as_str().replace('/', "+") + RECORD_SUFFIX;
        self.dir.join(NAMES).join(file)
    }

    fn lock_file(&self) -> Result<File, ImageError> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.dir.join(LOCK);
        let opened = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        opened.map_err(file_error("open", &path))
    }

    /// Imports hold the lock while they build: whoever gets it alone may remove every unfinished build.
    fn remove_leftovers(&self) -> Result<(), ImageError> {
        let lock = self.lock_file()?;
        if lock.try_lock().is_err() {
            return Ok(()); // an import is under way; a later open will look again
        }
        for dir in [self.dir.clone(), self.dir.join(NAMES)] {
            for entry in fs::read_dir(&dir).map_err(file_error("read", &dir))? {
                let entry = entry.map_err(file_error("read", &dir))?;
                if !entry.file_name().as_encoded_bytes().starts_with(IMPORT_PREFIX.as_bytes()) {
                    continue;
                }
                let path = entry.path();
                let is_dir = entry.file_type().map_err(file_error("read", &path))?.is_dir();
                let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(file_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

impl ImageDigest {
    fn of(path: &Path) -> io::Result<ImageDigest> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            hasher.update(&buffer[..n]);
        }
        let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(ImageDigest(format!("sha256:{hex}")))
    }

    fn directory(&self) -> String {
        self.0.replace(':', "_")
    }
}

impl TryFrom<String> for ImageDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let hex = text.strip_prefix("sha256:").ok_or("digest does not start with `sha256:`")?;
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != 64 || !hex.bytes().all(is_hex) {
            return Err("digest is not 64 hex digits");
        }
        Ok(ImageDigest(text))
    }
}

impl From<ImageDigest> for String {
    fn from(digest: ImageDigest) -> String {
        digest.0
    }
}

fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(file_error("write", path))
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::File { action, path, source }
}
