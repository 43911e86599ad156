//! What the host offers, without starting a VM.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use aegis_config::AcceleratorSetting;
use rustix::fs::{Access, access, statvfs};
use rustix::io::Errno;
use tokio::process::Command;

use super::report::Check;
use crate::ui;

/// An image and the disk of an instance that writes a little.
const SPACE_MIN: u64 = 1 << 30;
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// The accelerator that would be tried first, and why not a faster one.
pub(super) fn accelerator(wanted: AcceleratorSetting) -> Check {
    if let AcceleratorSetting::Fixed(accelerator) = wanted {
        return Check::good("Accelerator", format!("{accelerator} (by setting)"));
    }
    if cfg!(target_os = "macos") {
        return Check::good("Accelerator", "hvf");
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu_can = cpuinfo.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    kvm(access("/dev/kvm", Access::READ_OK | Access::WRITE_OK), cpu_can)
}

fn kvm(device: Result<(), Errno>, cpu_can: bool) -> Check {
    let slow =
        |problem: &str, hint: &str| Check::odd("Accelerator", "tcg (software emulation)", problem, hint);
    match device {
        // A device without such a CPU is emulated itself and does not run ordinary kernels.
        _ if !cpu_can => slow(
            "the CPU has no hardware virtualisation (neither vmx nor svm)",
            "enable it in the firmware, or, in a VM, nested virtualisation on its host",
        ),
        Ok(()) => Check::good("Accelerator", "kvm, if the trial at the first start of a VM succeeds"),
        Err(Errno::ACCESS | Errno::PERM) => slow(
            "no access to /dev/kvm",
            "add your user to the `kvm` group (`sudo usermod -aG kvm $USER`) and log in again",
        ),
        Err(Errno::NOENT) => slow(
            "there is no /dev/kvm although the CPU can virtualise",
            "load the module: `sudo modprobe kvm_intel` or `sudo modprobe kvm_amd`",
        ),
        Err(other) => {
            slow(&format!("cannot use /dev/kvm: {}", std::io::Error::from(other)), "check the device")
        }
    }
}

/// First line of `PROGRAM --version`.
pub(super) async fn version_of(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(VERSION_DEADLINE, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(e)) => return Err(format!("cannot be started: {e}")),
        Err(_) => return Err(format!("`--version` does not end within {} s", VERSION_DEADLINE.as_secs())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => Err(format!("`--version` fails ({})", output.status)),
    }
}

/// What the kernel offers for shutting workers in. What a worker made of it is in `aegis instance info`.
pub(super) fn confinement() -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let modules = fs::read_to_string("/sys/kernel/security/lsm").ok();
    offered(status.contains("\nSeccomp:"), modules.as_deref())
}

fn offered(seccomp: bool, security_modules: Option<&str>) -> Check {
    let landlock = security_modules.map(|list| list.trim().split(',').any(|module| module == "landlock"));
    let seccomp = if seccomp { "seccomp" } else { "no seccomp" };
    match landlock {
        Some(true) => Check::good("Confinement", format!("landlock, {seccomp}")),
        Some(false) => Check::odd(
            "Confinement",
            format!("no landlock, {seccomp}"),
            "the kernel does not offer landlock, so workers are confined less",
            "boot with `lsm=landlock,...` on a kernel from 5.13 on",
        ),
        None => Check::good("Confinement", format!("{seccomp}; landlock is tried at each start of a VM")),
    }
}

/// Free space where the home is or will be.
pub(super) fn disk_space(home: &Path) -> Check {
    let place = home.ancestors().find(|path| path.exists()).unwrap_or(home);
    let stat = match statvfs(place) {
        Ok(stat) => stat,
        Err(e) => {
            let problem = format!("cannot ask {}: {}", place.display(), std::io::Error::from(e));
            return Check::odd("Disk space", "unknown", problem, "check the file system");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let text = format!("{} free", ui::size(free));
    if free >= SPACE_MIN {
        return Check::good("Disk space", text);
    }
    let hint =
        "`aegis instance prune --stopped-older-than 1h` deletes old instances; AEGIS_HOME moves everything";
    Check::odd("Disk space", text, "instances may run out of it", hint)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn json(check: &Check) -> String {
        serde_json::to_string(check).unwrap()
    }

    #[test]
    fn each_obstacle_to_kvm_has_its_own_advice() {
        assert!(json(&kvm(Ok(()), true)).contains(r#""level":"ok""#));
        for (errno, cpu_can, advice) in [
            (Errno::ACCESS, true, "usermod"),
            (Errno::NOENT, true, "modprobe"),
            (Errno::NOENT, false, "firmware"),
            (Errno::ACCESS, false, "firmware"),
            (Errno::NODEV, true, "check the device"),
        ] {
            let text = json(&kvm(Err(errno), cpu_can));
            assert!(text.contains(advice) && text.contains("warning"), "{text}");
        }
    }

    #[test]
    fn confinement_tells_what_is_missing() {
        assert!(json(&offered(true, Some("lockdown,landlock,yama\n"))).contains(r#""level":"ok""#));
        assert!(json(&offered(true, Some("lockdown"))).contains("5.13"));
        assert!(json(&offered(false, None)).contains("no seccomp; landlock is tried"));
    }

    #[tokio::test]
    async fn a_program_that_is_none_is_a_problem() {
        assert!(version_of(Path::new("/nonexistent/qemu")).await.unwrap_err().contains("cannot be started"));
        assert!(version_of(Path::new("/bin/false")).await.is_err());
    }
}
