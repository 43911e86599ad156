//! Which accelerator this host really has.
//!
//! That `/dev/kvm` opens proves nothing: some hosts offer one on which no stock kernel boots. So the decision has
//! two steps. [`static_verdict`] rules KVM out where that can be seen; where it cannot, the caller boots the real
//! kernel once under KVM, up to the answer of the harness, and keeps the [`Verdict`] in a [`Cache`] under a
//! [`CacheKey`] that changes with everything the outcome depends on.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aegis_types::Accelerator;
use serde::{Deserialize, Serialize};

const KVM: &str = "/dev/kvm";
const CACHE_FILE: &str = "accelerator.json";

/// What can be told without starting a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StaticVerdict {
    /// It is clear.
    Known(Verdict),
    /// KVM may work: boot a VM to find out.
    TryKvm,
}

/// The accelerator to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Why this one, or why not a faster one; a fragment for people.
    pub reason: String,
}

impl Verdict {
    /// KVM was tried and works.
    pub fn kvm() -> Self {
        Self { accelerator: Accelerator::Kvm, reason: "a VM booted with it".to_owned() }
    }

    /// Software emulation, because of `reason`.
    pub fn tcg(reason: impl Into<String>) -> Self {
        Self { accelerator: Accelerator::Tcg, reason: reason.into() }
    }
}

/// Looks at the CPU and at `/dev/kvm`.
pub fn static_verdict() -> StaticVerdict {
    // An unreadable file says nothing; the trial does.
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    judge(&cpuinfo, File::options().read(true).write(true).open(KVM).map(drop))
}

fn judge(cpuinfo: &str, kvm: io::Result<()>) -> StaticVerdict {
    let known = |reason: String| StaticVerdict::Known(Verdict::tcg(reason));
    match kvm {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return known(format!("there is no {KVM}")),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return known(format!("no access to {KVM}: add your user to the `kvm` group and log in again"));
        }
        Err(e) => return known(format!("{KVM} cannot be opened: {e}")),
        Ok(()) => {}
    }
    // x86 calls the line `flags`; elsewhere there is none and the trial decides.
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    match flags {
        Some((_, flags)) if !flags.split_whitespace().any(|f| f == "vmx" || f == "svm") => {
            known("the CPU has no hardware virtualisation (neither vmx nor svm)".to_owned())
        }
        _ => StaticVerdict::TryKvm,
    }
}

/// Everything that the outcome of a trial depends on: this boot of the host, the kernel and the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheKey {
    host_boot: String,
    kernel: FileIdentity,
    vmm: FileIdentity,
}

/// Tells a file from its replacement without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl CacheKey {
    /// The key for these files on this host.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn new(kernel: &Path, vmm: &Path) -> io::Result<Self> {
        let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { host_boot, kernel: FileIdentity::of(kernel)?, vmm: FileIdentity::of(vmm)? })
    }
}

/// Remembers one verdict in a directory.
#[derive(Debug)]
pub struct Cache {
    file: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: CacheKey,
    verdict: Verdict,
}

impl Cache {
    /// The cache in this directory, which exists.
    pub fn new(directory: &Path) -> Self {
        Self { file: directory.join(CACHE_FILE) }
    }

    /// The verdict for exactly this key. An unreadable cache is an empty one.
    pub fn load(&self, key: &CacheKey) -> Option<Verdict> {
        let entry: Entry = serde_json::from_slice(&fs::read(&self.file).ok()?).ok()?;
        (entry.key == *key).then_some(entry.verdict)
    }

    /// Replaces what is remembered.
    ///
    /// # Errors
    /// The file cannot be written; the old one stays.
    pub fn store(&self, key: &CacheKey, verdict: &Verdict) -> io::Result<()> {
        let entry = Entry { key: key.clone(), verdict: verdict.clone() };
        let text = serde_json::to_vec(&entry)?;
        let fresh = self.file.with_extension("json.new");
        let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&text)?;
        fs::rename(&fresh, &self.file)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn reason(verdict: StaticVerdict) -> String {
        match verdict {
            StaticVerdict::Known(v) if v.accelerator == Accelerator::Tcg => v.reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kvm_is_tried_only_where_it_can_work() {
        let with = "processor\t: 0\nflags\t\t: fpu vmx sse\n";
        let without = "flags\t\t: fpu vmxx sse\n";
        assert_eq!(judge(with, Ok(())), StaticVerdict::TryKvm);
        assert_eq!(judge("processor : 0\nFeatures : fp asimd\n", Ok(())), StaticVerdict::TryKvm);
        assert!(reason(judge(without, Ok(()))).contains("vmx"));
        assert!(reason(judge(with, Err(io::ErrorKind::NotFound.into()))).contains("there is no /dev/kvm"));
        assert!(reason(judge(with, Err(io::ErrorKind::PermissionDenied.into()))).contains("`kvm` group"));
    }

    #[test]
    fn a_verdict_is_kept_until_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, vmm) = (dir.path().join("kernel"), dir.path().join("vmm"));
        fs::write(&kernel, "k").unwrap();
        fs::write(&vmm, "v").unwrap();
        let cache = Cache::new(dir.path());
        let key = CacheKey::new(&kernel, &vmm).unwrap();
        assert_eq!(cache.load(&key), None);
        cache.store(&key, &Verdict::kvm()).unwrap();
        assert_eq!(cache.load(&key), Some(Verdict::kvm()));
        fs::write(&kernel, "kk").unwrap();
        assert_eq!(cache.load(&CacheKey::new(&kernel, &vmm).unwrap()), None);
    }
}
