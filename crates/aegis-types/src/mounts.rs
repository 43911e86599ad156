//! Directories of the host that a guest has mounted.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where the directory that every instance has is mounted.
pub const WORKSPACE: &str = "/workspace";
/// Mounts of one instance, the workspace included.
pub const MOUNTS_MAX: usize = 8;
/// Longest mount point in bytes: all of them travel in one line of the handshake.
const PATH_MAX: usize = 255;
/// What the guest's kernel has there must stay reachable.
const RESERVED: &[&str] = &["/proc", "/sys", "/dev", "/aegis"];

/// Text that is no place for a mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot mount at `{path}`: {why}")]
pub struct InvalidMountPoint {
    /// The text.
    pub path: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A place in the guest where something can be mounted: absolute, without `.` and `..`, and not `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct MountPoint(String);

impl MountPoint {
    /// [`WORKSPACE`].
    pub fn workspace() -> Self {
        Self(WORKSPACE.to_owned())
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one of them is in the other, or both are the same.
    pub fn overlaps(&self, other: &Self) -> bool {
        is_within(&self.0, &other.0) || is_within(&other.0, &self.0)
    }
}

fn is_within(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl FromStr for MountPoint {
    type Err = InvalidMountPoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why| InvalidMountPoint { path: text.chars().take(PATH_MAX).collect(), why };
        let Some(rest) = text.strip_prefix('/') else { return Err(bad("it must begin with `/`")) };
        if text.len() > PATH_MAX {
            return Err(bad("it is too long"));
        }
        if text.chars().any(|c| c.is_control() || matches!(c, '"' | '\\')) {
            return Err(bad("it has a character that is not allowed"));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() {
            return Err(bad("the root file system is there"));
        }
        if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(bad("write it without `.`, `..` and `//`"));
        }
        let path = format!("/{rest}");
        if RESERVED.iter().any(|reserved| is_within(&path, reserved)) {
            return Err(bad("the guest needs what is there"));
        }
        Ok(Self(path))
    }
}

impl TryFrom<String> for MountPoint {
    type Error = InvalidMountPoint;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MountPoint> for String {
    fn from(point: MountPoint) -> Self {
        point.0
    }
}

impl fmt::Display for MountPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A directory of the host, mounted in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mount {
    /// Absolute, without symbolic links.
    #[schema(value_type = String)]
    pub host: PathBuf,
    /// Where the guest has it.
    pub guest: MountPoint,
    /// The guest cannot change it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn mount_points_are_absolute_and_clean() {
        for (text, path) in
            [("/data", "/data"), ("/a/b/", "/a/b"), ("/ä b", "/ä b"), ("/procedure", "/procedure")]
        {
            assert_eq!(text.parse::<MountPoint>().unwrap().as_str(), path);
        }
        let long = format!("/{}", "x".repeat(255));
        for bad in [
            "", "data", "/", "//", "/a/../b", "/./a", "/a//b", "/proc", "/sys/x", "/dev/shm", "/a\nb",
            "/a\"b", &long,
        ] {
            assert!(bad.parse::<MountPoint>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<MountPoint>("\"/a/..\"").is_err());
    }

    #[test]
    fn mounts_hide_each_other() {
        let overlap = |a: &str, b: &str| a.parse::<MountPoint>().unwrap().overlaps(&b.parse().unwrap());
        assert!(overlap("/a", "/a") && overlap("/a", "/a/b") && overlap("/a/b", "/a"));
        assert!(!overlap("/a", "/ab") && !overlap("/a/b", "/a/c"));
    }
}
