//! The home directory of AegisVM and the places in it. Several homes are several independent installations.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aegis_types::InstanceId;

use crate::env::{self, Environment};

/// The longest path of a unix socket that every supported system accepts, in bytes.
const SOCKET_PATH_MAX: usize = 103;

/// The home directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// No flag, no `AEGIS_HOME` and no `HOME`.
    #[error("neither {} nor HOME is set, so there is no place for AegisVM's files", env::HOME)]
    Unknown,
    /// The path cannot be made absolute.
    #[error("cannot use {} as home directory", path.display())]
    NotAbsolute {
        /// As given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Sockets in it would have paths longer than the system accepts.
    #[error("home directory {} is too long: the path of the socket in it has more than {SOCKET_PATH_MAX} bytes", path.display())]
    TooLong {
        /// As given.
        path: PathBuf,
    },
    /// A directory cannot be created.
    #[error("cannot create {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An absolute home directory. Nothing is created before [`Home::ensure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The flag, else `AEGIS_HOME`, else `~/.aegis`, made absolute.
    ///
    /// # Errors
    /// None of them is there, or sockets in it would have too long paths.
    pub fn resolve(flag: Option<PathBuf>) -> Result<Self, HomeError> {
        Self::resolve_in(flag, &Environment::process())
    }

    /// [`Home::resolve`] with another environment.
    ///
    /// # Errors
    /// As [`Home::resolve`].
    pub fn resolve_in(flag: Option<PathBuf>, vars: &Environment) -> Result<Self, HomeError> {
        let path = flag
            .or_else(|| vars.path(env::HOME))
            .or_else(|| vars.path(env::USER_HOME).map(|home| home.join(".aegis")))
            .ok_or(HomeError::Unknown)?;
        let root = std::path::absolute(&path)
            .map_err(|source| HomeError::NotAbsolute { path: path.clone(), source })?;
        let home = Self { root };
        if home.socket().as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
            return Err(HomeError::TooLong { path });
        }
        Ok(home)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Socket of the daemon's API.
    pub fn socket(&self) -> PathBuf {
        self.root.join("aegisd.sock")
    }

    /// Settings, written by the user; may be absent.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The key that the secrets are encrypted with, unless it is in a keychain.
    pub fn master_key(&self) -> PathBuf {
        self.root.join("master.key")
    }

    /// Credentials of `aegis registry login`.
    pub fn registries(&self) -> PathBuf {
        self.root.join("registries.json")
    }

    /// What the daemon keeps.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Process id of the running daemon.
    pub fn pid_file(&self) -> PathBuf {
        self.data().join("aegisd.pid")
    }

    /// Locked by the running daemon.
    pub fn lock_file(&self) -> PathBuf {
        self.data().join("aegisd.lock")
    }

    /// Locked while `aegis up` starts a daemon, so that two of them do not start two.
    pub fn up_lock_file(&self) -> PathBuf {
        self.data().join("up.lock")
    }

    /// Output of a daemon that `aegis up` started.
    pub fn daemon_log(&self) -> PathBuf {
        self.data().join("aegisd.log")
    }

    /// Registry.
    pub fn database(&self) -> PathBuf {
        self.data().join("aegis.db")
    }

    /// Image store.
    pub fn images(&self) -> PathBuf {
        self.data().join("images")
    }

    /// Logs of instances.
    pub fn logs(&self) -> PathBuf {
        self.data().join("logs")
    }

    /// Disks of instances.
    pub fn instances(&self) -> PathBuf {
        self.data().join("instances")
    }

    /// Directories that instances mount by name.
    pub fn workspaces(&self) -> PathBuf {
        self.data().join("workspaces")
    }

    /// Disk and other lasting files of an instance.
    pub fn instance_dir(&self, id: &InstanceId) -> PathBuf {
        self.instances().join(id.as_str())
    }

    /// Memory of an instance that may be saved: see `aegis_proto::saved`.
    pub fn memory_dir(&self, id: &InstanceId) -> PathBuf {
        self.instance_dir(id).join("memory")
    }

    /// Templates: VMs that were booted and parked.
    pub fn templates(&self) -> PathBuf {
        self.data().join("templates")
    }

    /// Sockets of live VMs.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Sockets of an instance's VM.
    pub fn run_dir(&self, id: &InstanceId) -> PathBuf {
        self.run().join(id.as_str())
    }

    /// Files that replace those of the installation.
    pub fn lib(&self) -> PathBuf {
        self.root.join("lib")
    }

    /// Creates the home, `data` and `run`, for the owner alone. Existing directories keep their modes: the user
    /// may have named one that others use too.
    ///
    /// # Errors
    /// [`HomeError::Create`] names the directory.
    pub fn ensure(&self) -> Result<(), HomeError> {
        for path in [self.root.clone(), self.data(), self.run()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| HomeError::Create { path, source })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::env::table;

    #[test]
    fn flag_wins_over_variable_wins_over_default() {
        let both = table(&[("AEGIS_HOME", "/a"), ("HOME", "/h")]);
        assert_eq!(Home::resolve_in(Some("/f".into()), &both).unwrap().root(), Path::new("/f"));
        assert_eq!(Home::resolve_in(None, &both).unwrap().root(), Path::new("/a"));
        let empty = table(&[("AEGIS_HOME", ""), ("HOME", "/h")]);
        assert_eq!(Home::resolve_in(None, &empty).unwrap().root(), Path::new("/h/.aegis"));
        assert!(matches!(Home::resolve_in(None, &table(&[])), Err(HomeError::Unknown)));
    }

    #[test]
    fn a_relative_home_becomes_absolute() {
        let home = Home::resolve_in(Some("x".into()), &table(&[])).unwrap();
        assert_eq!(home.root(), std::env::current_dir().unwrap().join("x"));
    }

    #[test]
    fn a_home_too_long_for_sockets_is_refused() {
        let long = PathBuf::from(format!("/{}", "a".repeat(100)));
        assert!(matches!(Home::resolve_in(Some(long), &table(&[])), Err(HomeError::TooLong { .. })));
    }

    #[test]
    fn new_directories_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve_in(Some(dir.path().join("h")), &table(&[])).unwrap();
        home.ensure().unwrap();
        home.ensure().unwrap();
        for path in [home.root().to_owned(), home.data(), home.run()] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{}", path.display());
        }
    }

    #[test]
    fn a_failure_names_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("h"), "").unwrap();
        let home = Home::resolve_in(Some(dir.path().join("h")), &table(&[])).unwrap();
        let HomeError::Create { path, .. } = home.ensure().unwrap_err() else { panic!("create") };
        assert_eq!(path, home.root());
    }
}
