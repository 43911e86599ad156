//! What the host tells about itself and about processes.

use std::fs;
use std::path::Path;

use aegis_types::Accelerator;

use crate::bare;
use crate::report::Machine;

/// Where it is measured.
pub(crate) fn machine(accelerator: Accelerator, vmm: &Path, guest_kernel: String) -> Machine {
    Machine {
        cpu: cpu_model(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        host_kernel: read("/proc/sys/kernel/osrelease"),
        guest_kernel,
        accelerator: format!("{} ({})", accelerator, bare::file_name(vmm)),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn cpu_model() -> String {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| "unknown CPU".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Resident memory of a process, if it lives.
pub(crate) fn resident_kib(pid: u32) -> Option<u64> {
    let status = read(&format!("/proc/{pid}/status"));
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

/// The child of a process with this name (the kernel keeps 15 characters of it).
pub(crate) fn child_named(parent: u32, name: &str) -> Option<u32> {
    children(parent).into_iter().find(|pid| read(&format!("/proc/{pid}/comm")) == name)
}

/// The processes below one.
pub(crate) fn descendants(parent: u32) -> Vec<u32> {
    let mut found = children(parent);
    let mut at = 0;
    while let Some(&pid) = found.get(at) {
        found.extend(children(pid));
        at += 1;
    }
    found
}

/// Children are listed by thread.
fn children(parent: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn grandchildren_are_found_and_measured() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The shell has its child when it speaks.
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let below = descendants(std::process::id());
        let sleeper = children(shell.id());
        assert!(
            below.contains(&shell.id()) && sleeper.len() == 1 && below.contains(&sleeper[0]),
            "{below:?}"
        );
        assert!(resident_kib(shell.id()).unwrap() > 0);
        std::process::Command::new("kill").arg(sleeper[0].to_string()).status().unwrap();
        shell.wait().unwrap();
        assert_eq!(resident_kib(sleeper[0]), None);
    }
}
