//! The memory of this machine, and how much of it VMs may have.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aegis_types::Mib;

/// Memory that all VMs may have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RamBudget {
    /// Half of the host's.
    #[default]
    Auto,
    /// This much.
    Fixed(Mib),
}

impl RamBudget {
    /// The budget in MiB, given the memory of the host. A host that does not tell its memory sets no limit.
    pub fn mib(self, host: Option<u64>) -> Option<u64> {
        match self {
            Self::Auto => host.map(|mib| mib / 2),
            Self::Fixed(mib) => Some(u64::from(mib.get())),
        }
    }
}

impl fmt::Display for RamBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(mib) => mib.get().fmt(f),
        }
    }
}

impl FromStr for RamBudget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let number =
            text.parse().map_err(|_| format!("RAM budget `{text}` is neither `auto` nor a number"))?;
        Mib::new(number).map(Self::Fixed).map_err(|e| format!("RAM budget: {e}"))
    }
}

/// Memory of this machine in MiB, or of the control group that this process is confined to, if that is less. `None`
/// where the system does not say.
pub fn host_memory_mib() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = total(&read(Path::new("/proc/meminfo"))?)?;
    let group = read(Path::new("/proc/self/cgroup")).and_then(|text| group(&text));
    let limits = group.iter().flat_map(|dir| dir.ancestors()).filter_map(|dir| {
        // Beside a process that is not confined there is no such file, or it says `max`.
        let path = Path::new("/sys/fs/cgroup").join(dir).join("memory.max");
        read(&path)?.trim().parse::<u64>().ok()
    });
    Some(limits.map(|bytes| bytes >> 20).fold(machine, u64::min))
}

/// `MemTotal` of `/proc/meminfo`, in MiB.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// The control group in the unified hierarchy, relative to its root.
fn group(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_half_of_the_host_unless_it_is_fixed() {
        assert_eq!(RamBudget::Auto.mib(Some(8001)), Some(4000));
        assert_eq!(RamBudget::Auto.mib(None), None);
        assert_eq!("2048".parse::<RamBudget>().map(|budget| budget.mib(Some(1))), Ok(Some(2048)));
        for text in ["auto", "2048"] {
            assert_eq!(text.parse::<RamBudget>().map(|budget| budget.to_string()), Ok(text.to_owned()));
        }
        for bad in ["", "half", "-1", "1", "1GiB"] {
            assert!(bad.parse::<RamBudget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert_eq!(group("1:cpu:/x\n0::/user.slice/a\n"), Some(PathBuf::from("user.slice/a")));
        assert_eq!(group("1:cpu:/x\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some_memory() {
        assert!(host_memory_mib().is_some_and(|mib| mib > 16), "{:?}", host_memory_mib());
    }
}
