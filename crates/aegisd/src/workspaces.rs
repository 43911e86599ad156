//! Which directories of the host an instance mounts, and the workspaces in the home.
//!
//! ```text
//! data/workspaces/<name>   named ones, kept until they are deleted
//! data/workspaces/<handle or id>   one that was made for an instance, and goes with it
//! ```
//! **Invariant:** a guest never mounts anything of AegisVM's own but workspaces, nor a directory that has it inside. Paths are
//! kept without symbolic links, so that whoever opens them later can refuse any.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use aegis_api::CreateInstance;
use aegis_config::Home;
use aegis_fs::Usage;
use aegis_lifecycle::record::InstanceSpec;
use aegis_types::{InstanceId, MOUNTS_MAX, Mount, MountPoint};

/// Longest name in bytes, as of a directory.
const NAME_MAX: usize = 255;

/// See the module.
pub(crate) struct Workspaces {
    home: Home,
}

/// What an instance mounts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) mounts: Vec<Mount>,
    /// The first directory was made now, for this instance.
    pub(crate) auto: bool,
}

/// A directory cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkspaceError {
    #[error(
        "`{0}` is no name for a workspace: it has no `/`, does not begin with `.`, and has no control characters"
    )]
    Name(String),
    #[error("`{0}` is no absolute path")]
    Relative(PathBuf),
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("{0} must not be mounted: {1}")]
    Forbidden(PathBuf, &'static str),
    #[error("{0} and {1} would hide each other")]
    Overlap(MountPoint, MountPoint),
    #[error("an instance has at most {MOUNTS_MAX} mounts")]
    TooMany,
    #[error("cannot use {path}", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
}

impl Workspaces {
    pub(crate) fn new(home: Home) -> Self {
        Self { home }
    }

    /// Where a workspace is; `None` for what cannot be the name of one.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        let fits = !name.is_empty()
            && name.len() <= NAME_MAX
            && !name.starts_with('.')
            && !name.contains(|c: char| c == '/' || c.is_control());
        fits.then(|| self.home.workspaces().join(name))
    }

    /// Finds or makes what a new instance mounts.
    pub(crate) fn choose(&self, id: &InstanceId, request: &CreateInstance) -> Result<Chosen, WorkspaceError> {
        if request.mounts.len() >= MOUNTS_MAX {
            return Err(WorkspaceError::TooMany);
        }
        let mut mounts = Vec::new();
        for mount in &request.mounts {
            if !mount.host.is_absolute() {
                return Err(WorkspaceError::Relative(mount.host.clone()));
            }
            mounts.push(Mount { host: self.allowed(&mount.host)?, ..mount.clone() });
        }
        let points: Vec<MountPoint> = [MountPoint::workspace()]
            .into_iter()
            .chain(mounts.iter().map(|mount| mount.guest.clone()))
            .collect();
        for (at, point) in points.iter().enumerate() {
            if let Some(other) = points[..at].iter().find(|other| other.overlaps(point)) {
                return Err(WorkspaceError::Overlap(other.clone(), point.clone()));
            }
        }
        // Last: nothing is made for an instance that is refused.
        let (host, auto) = self.workspace(id, request)?;
        let workspace =
            Mount { host, guest: MountPoint::workspace(), read_only: request.workspace_read_only };
        mounts.insert(0, workspace);
        Ok(Chosen { mounts, auto })
    }

    fn workspace(
        &self,
        id: &InstanceId,
        request: &CreateInstance,
    ) -> Result<(PathBuf, bool), WorkspaceError> {
        match request.workspace.as_deref().unwrap_or_default() {
            "" => {
                let name = request.handle.as_ref().map_or(id.as_str(), |handle| handle.as_str());
                let path = self.path(name).ok_or_else(|| WorkspaceError::Name(name.to_owned()))?;
                let made = self.make(&path)?;
                Ok((self.allowed(&path)?, made))
            }
            path if path.starts_with('/') => {
                let path = Path::new(path);
                make_all(path)?;
                Ok((self.allowed(path)?, false))
            }
            name => {
                let path = self.path(name).ok_or_else(|| WorkspaceError::Name(name.to_owned()))?;
                self.make(&path)?;
                Ok((self.allowed(&path)?, false))
            }
        }
    }

    /// Makes a workspace. Whether there was none.
    fn make(&self, path: &Path) -> Result<bool, WorkspaceError> {
        let all = self.home.workspaces();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&all);
        made.map_err(|e| unusable(&all, e))?;
        match DirBuilder::new().mode(0o755).create(path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(unusable(path, e)),
        }
    }

    /// The home without symbolic links.
    fn real_home(&self) -> Result<PathBuf, WorkspaceError> {
        fs::canonicalize(self.home.root()).map_err(|e| unusable(self.home.root(), e))
    }

    /// The path without symbolic links, of a directory that a guest may have.
    fn allowed(&self, path: &Path) -> Result<PathBuf, WorkspaceError> {
        let forbidden = |why| Err(WorkspaceError::Forbidden(path.to_owned(), why));
        let real = fs::canonicalize(path).map_err(|e| unusable(path, e))?;
        let home = self.real_home()?;
        let workspaces = home.join("data").join("workspaces");
        let is_directory = fs::metadata(&real).map_err(|e| unusable(path, e))?.is_dir();
        if !is_directory {
            return Err(WorkspaceError::NotADirectory(path.to_owned()));
        }
        if real.parent().is_none() {
            return forbidden("it is the root of the host");
        }
        let system = ["/proc", "/sys", "/dev"].iter().any(|system| real.starts_with(system));
        if system && (!real.starts_with("/dev/shm") || real.ends_with("shm")) {
            return forbidden("it is the host's own");
        }
        let within = real.strip_prefix(&workspaces).is_ok_and(|rest| rest.components().next().is_some());
        if home.starts_with(&real) || (real.starts_with(&home) && !within) {
            return forbidden("AegisVM's own files are there");
        }
        if real.components().any(|part| matches!(part, Component::ParentDir)) || real.to_str().is_none() {
            return forbidden("its name is not valid UTF-8");
        }
        Ok(real)
    }

    /// Undoes [`Workspaces::choose`] for an instance that was not created.
    pub(crate) fn give_up(&self, chosen: &Chosen) {
        if let (true, Some(workspace)) = (chosen.auto, chosen.mounts.first()) {
            // Nobody had it yet, so it is empty.
            let _ = fs::remove_dir(&workspace.host);
        }
    }

    /// Removes empty workspaces that an earlier daemon made for instances which it did not live to create.
    ///
    /// # Errors
    /// They cannot be listed.
    pub(crate) fn reap(&self, instances: &[InstanceId]) -> io::Result<()> {
        for name in self.names()? {
            let orphan = name.parse::<InstanceId>().is_ok_and(|id| !instances.contains(&id));
            if let Some(path) = self.path(&name).filter(|_| orphan) {
                // One with content is somebody's.
                let _ = fs::remove_dir(path);
            }
        }
        Ok(())
    }

    /// Removes the workspace that was made for an instance.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub(crate) fn remove_own(&self, spec: &InstanceSpec) -> io::Result<()> {
        match spec.mounts.first() {
            Some(workspace) if spec.auto_workspace => aegis_fs::remove_tree(&workspace.host),
            _ => Ok(()),
        }
    }

    /// Makes sure that what an instance mounts is there: workspaces that somebody has removed are made again.
    ///
    /// # Errors
    /// Another directory is gone, or has become something else.
    pub(crate) fn check(&self, mounts: &[Mount]) -> Result<(), WorkspaceError> {
        let ours = self.real_home()?.join("data").join("workspaces");
        for mount in mounts {
            if mount.host.parent() == Some(&ours) {
                self.make(&mount.host)?;
            }
            let opened = aegis_fs::open_root(&mount.host);
            opened.map_err(|e| unusable(&mount.host, e))?;
        }
        Ok(())
    }

    /// Names of all workspaces, in order.
    pub(crate) fn names(&self) -> io::Result<BTreeSet<String>> {
        let entries = match fs::read_dir(self.home.workspaces()) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries?,
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            let entry = entry?;
            if let (true, Ok(name)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// Path and usage of a workspace; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn usage(&self, name: &str) -> io::Result<Option<Usage>> {
        let Some(path) = self.path(name) else { return Ok(None) };
        match aegis_fs::usage(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            usage => usage.map(Some),
        }
    }

    /// Removes a workspace. Whether there was one.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub(crate) fn delete(&self, name: &str) -> io::Result<bool> {
        let Some(path) = self.path(name).filter(|path| path.symlink_metadata().is_ok()) else {
            return Ok(false);
        };
        aegis_fs::remove_tree(&path).map(|()| true)
    }
}

fn unusable(path: &Path, e: io::Error) -> WorkspaceError {
    let e = match e.kind() {
        ErrorKind::StorageFull => io::Error::new(ErrorKind::StorageFull, "the disk is full"),
        _ => e,
    };
    WorkspaceError::Io(path.to_owned(), e)
}

fn make_all(path: &Path) -> Result<(), WorkspaceError> {
    match DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(WorkspaceError::NotADirectory(path.to_owned())),
        made => made.map_err(|e| unusable(path, e)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    struct World {
        dir: tempfile::TempDir,
        workspaces: Workspaces,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(dir.path().join("user/.aegis"))).unwrap();
        home.ensure().unwrap();
        World { workspaces: Workspaces::new(home), dir }
    }

    impl World {
        fn choose(&self, workspace: Option<&str>, mounts: &[(&str, &str)]) -> Result<Chosen, WorkspaceError> {
            let mount = |(host, guest): &(&str, &str)| Mount {
                host: self.dir.path().join(host),
                guest: guest.parse().unwrap(),
                read_only: true,
            };
            let request = CreateInstance {
                handle: Some(aegis_types::Handle::parse("web").unwrap()),
                workspace: workspace.map(str::to_owned),
                mounts: mounts.iter().map(mount).collect(),
                ..CreateInstance::default()
            };
            self.workspaces.choose(&InstanceId::from_unix_nanos(1), &request)
        }

        fn path(&self, below: &str) -> String {
            self.dir.path().join(below).to_str().unwrap().to_owned()
        }
    }

    #[test]
    fn a_workspace_is_automatic_only_if_it_was_made_for_the_instance() {
        let world = world();
        let named = world.choose(Some("web"), &[]).unwrap();
        assert!(!named.auto && named.mounts[0].host.ends_with("data/workspaces/web"));
        let adopted = world.choose(None, &[]).unwrap();
        assert_eq!((adopted.auto, &adopted.mounts), (false, &named.mounts), "it was somebody's");
        assert!(world.workspaces.delete("web").unwrap() && !world.workspaces.delete("web").unwrap());
        let own = world.choose(None, &[]).unwrap();
        assert!(own.auto && own.mounts[0].guest == MountPoint::workspace());
        world.workspaces.give_up(&own);
        assert!(!own.mounts[0].host.exists());
    }

    #[test]
    fn what_is_not_the_guests_business_is_refused() {
        let world = world();
        fs::write(world.path("file"), "").unwrap();
        fs::create_dir(world.path("data")).unwrap();
        std::os::unix::fs::symlink(world.path("user/.aegis"), world.path("link")).unwrap();
        let inside = format!("{}/data", world.path("user/.aegis"));
        for bad in ["/", "/proc", "/dev/shm", ".hidden", "a/b", "..", "a\nb"] {
            assert!(world.choose(Some(bad), &[]).is_err(), "{bad:?}");
        }
        for bad in ["file", "user/.aegis", "user", "link", "."] {
            assert!(world.choose(Some(&world.path(bad)), &[]).is_err(), "{bad:?}");
        }
        assert!(world.choose(Some(&inside), &[]).is_err());
        assert!(world.choose(None, &[("missing", "/m")]).is_err());
        assert!(world.choose(None, &[("data", "/workspace/sub")]).is_err());
        assert!(world.choose(None, &[("data", "/a"), ("data", "/a/b")]).is_err());
        assert!(world.workspaces.names().unwrap().is_empty(), "nothing was made for what was refused");
        let chosen = world.choose(Some(&world.path("new/deep")), &[("data", "/data")]).unwrap();
        assert_eq!(chosen.mounts.len(), 2);
        assert!(chosen.mounts[0].host.is_dir() && chosen.mounts[1].read_only && !chosen.auto);
    }

    #[test]
    fn what_was_made_for_nobody_is_removed() {
        let world = world();
        let (lost, known) = (InstanceId::from_unix_nanos(1), InstanceId::from_unix_nanos(2));
        for id in [&lost, &known] {
            assert!(world.workspaces.choose(id, &CreateInstance::default()).unwrap().auto);
        }
        assert!(!world.choose(Some("mine"), &[]).unwrap().auto);
        world.workspaces.reap(std::slice::from_ref(&known)).unwrap();
        let left: Vec<String> = world.workspaces.names().unwrap().into_iter().collect();
        assert_eq!(left, [known.to_string(), "mine".to_owned()]);
    }

    #[test]
    fn what_is_gone_is_noticed_before_a_start() {
        let world = world();
        let own = world.choose(None, &[]).unwrap();
        fs::remove_dir(&own.mounts[0].host).unwrap();
        world.workspaces.check(&own.mounts).unwrap();
        assert!(own.mounts[0].host.is_dir());
        let other = world.choose(Some(&world.path("code")), &[]).unwrap();
        fs::remove_dir(world.path("code")).unwrap();
        assert!(world.workspaces.check(&other.mounts).is_err());
        std::os::unix::fs::symlink("/etc", world.path("code")).unwrap();
        assert!(world.workspaces.check(&other.mounts).is_err(), "a link is not followed");
    }
}
