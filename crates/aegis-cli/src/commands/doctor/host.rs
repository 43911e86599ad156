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

/// How well a worker can shut itself in: it tries, and tells.
pub(super) async fn confinement(worker: Option<&Path>) -> Check {
    let unknown = |problem: String| {
        Check::odd("Confinement", "unknown", problem, "see what is said of the worker; reinstall AegisVM")
    };
    let Some(worker) = worker else { return unknown("there is no worker to ask".to_owned()) };
    let output = Command::new(worker).arg("confinement").stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(VERSION_DEADLINE, output).await {
        Ok(Ok(output)) => match serde_json::from_slice(&output.stdout) {
            Ok(layers) => reached(&layers),
            Err(_) => unknown(format!("the worker does not tell ({})", output.status)),
        },
        Ok(Err(e)) => unknown(format!("the worker cannot be started: {e}")),
        Err(_) => unknown(format!("the worker does not answer within {} s", VERSION_DEADLINE.as_secs())),
    }
}

/// What `aegis-vmm-worker confinement` prints, as far as it matters here.
#[derive(serde::Deserialize)]
struct Layers {
    landlock_abi: u32,
    seccomp: bool,
    no_new_privs: bool,
    #[serde(default)]
    cgroup: Option<std::path::PathBuf>,
}

fn reached(layers: &Layers) -> Check {
    let mut names = Vec::new();
    if layers.landlock_abi > 0 {
        names.push(format!("landlock (ABI {})", layers.landlock_abi));
    }
    let present = [
        (layers.seccomp, "seccomp"),
        (layers.no_new_privs, "no_new_privs"),
        (layers.cgroup.is_some(), "cgroup"),
    ];
    names.extend(present.into_iter().filter(|(there, _)| *there).map(|(_, name)| name.to_owned()));
    let text = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    if layers.landlock_abi == 0 {
        let hint = "boot with `lsm=landlock,...` on a kernel from 5.13 on";
        return Check::odd(
            "Confinement",
            text,
            "the kernel does not offer landlock, so workers are confined less",
            hint,
        );
    }
    if !layers.seccomp || !layers.no_new_privs {
        return Check::odd(
            "Confinement",
            text,
            "the kernel lacks seccomp, so workers are confined less",
            "use a distribution kernel",
        );
    }
    Check::good("Confinement", text)
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
        let layers = |abi, seccomp| Layers { landlock_abi: abi, seccomp, no_new_privs: true, cgroup: None };
        let full = json(&reached(&layers(6, true)));
        assert!(
            full.contains(r#""level":"ok""#) && full.contains("landlock (ABI 6), seccomp, no_new_privs"),
            "{full}"
        );
        assert!(json(&reached(&layers(0, true))).contains("does not offer landlock"));
        assert!(json(&reached(&layers(6, false))).contains("lacks seccomp"));
    }
}
