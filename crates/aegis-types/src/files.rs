//! Files of a guest, and what came of copying them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Problems that are told one by one; of the others only the number is.
pub const PROBLEMS_MAX: usize = 50;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a pipe or a socket.
    Other,
}

/// What is at a path, as its owner may know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes.
    pub size: u64,
    /// Permission bits, the set-id and the sticky bit included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of its content, in seconds since the Unix epoch.
    pub mtime: i64,
}

/// A file that was not copied, or not as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyProblem {
    /// Its path in the copied tree.
    pub path: String,
    /// What is wrong.
    pub error: String,
}

/// What came of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct CopyReport {
    /// Files, directories and links that were copied.
    pub entries: u64,
    /// Length of the copied files together, in bytes.
    pub bytes: u64,
    /// What was not, the first of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<CopyProblem>,
    /// Problems beyond those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_problems: u64,
    /// Entries whose owner could not be kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub owners_lost: u64,
    /// Why the copy ended early, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl CopyReport {
    /// Adds a problem.
    pub fn problem(&mut self, path: impl Into<String>, error: impl ToString) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(CopyProblem { path: path.into(), error: error.to_string() });
        } else {
            self.more_problems += 1;
        }
    }

    /// Everything was copied.
    pub fn is_complete(&self) -> bool {
        self.problems.is_empty() && self.more_problems == 0 && self.failure.is_none()
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_problems_is_counted() {
        let mut report = CopyReport::default();
        assert!(report.is_complete());
        (0..PROBLEMS_MAX + 7).for_each(|i| report.problem(i.to_string(), "no"));
        assert_eq!((report.problems.len(), report.more_problems), (PROBLEMS_MAX, 7));
        assert!(!report.is_complete());
    }
}
