//! What instances cost.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aegis_api::{DaemonStats, InstanceStats, LastStart, StartCounts};
use aegis_config::Home;
use aegis_lifecycle::{Instance, Status};
use aegis_proto::saved::RAM_FILE;
use aegis_proto::worker::Ready;
use axum::extract::State;
use tokio::task;

use super::{Shared, view};
use crate::launcher::disk::DISK_FILE;

/// Clock ticks of proc_pid_stat(5) in a second; the same on every Linux that we run on.
const TICKS_PER_SECOND: u64 = 100;

/// Numbers of the daemon and of every instance.
#[utoipa::path(get, path = "/v1/stats", responses((status = 200, body = DaemonStats)))]
pub(super) async fn stats(State(app): State<Shared>) -> axum::Json<DaemonStats> {
    axum::Json(collect(&app).await)
}

/// The numbers of now.
pub(super) async fn collect(app: &Shared) -> DaemonStats {
    let (budget, used) = app.manager.memory();
    let (instances, home) = (view::sorted(app.manager.list(), None), app.home.clone());
    let measured = task::spawn_blocking(move || {
        instances.iter().map(|(instance, status)| measure(&home, instance, status)).collect()
    });
    DaemonStats {
        ram_budget_mb: budget.unwrap_or_default(),
        ram_used_mb: used,
        instances: measured.await.expect("reading /proc does not panic"),
    }
}

fn measure(home: &Home, instance: &Instance, status: &Status) -> InstanceStats {
    let spec = instance.spec();
    let pid = status.vm.as_ref().and_then(|vm| vm.vmm_pid);
    let counters = status.counters;
    InstanceStats {
        id: spec.id.clone(),
        handle: spec.handle.clone(),
        state: status.state,
        wakes: counters.wakes,
        starts: StartCounts { cold: counters.cold, template: counters.template, restore: counters.restore },
        last_start: status.last_start.as_ref().map(last_start),
        cpu_ms: pid.and_then(cpu_ms).unwrap_or_default(),
        rss_bytes: pid.and_then(rss_bytes).unwrap_or_default(),
        disk_bytes: allocated(&home.instance_dir(&spec.id).join(DISK_FILE)),
        memory_image_bytes: allocated(&home.memory_dir(&spec.id).join(RAM_FILE)),
        active_connections: status.users.connections,
        active_execs: status.users.execs,
    }
}

fn last_start(ready: &Ready) -> LastStart {
    let ms = |us: u64| us.div_ceil(1000);
    LastStart {
        kind: ready.start,
        total_ms: ready.boot_ms,
        vmm_ms: ms(ready.phases.vmm_us),
        load_ms: ms(ready.phases.load_us),
        guest_ms: ms(ready.phases.guest_us),
    }
}

/// User and system time of a process: fields 14 and 15 of proc_pid_stat(5).
fn cpu_ms(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) * 1000 / TICKS_PER_SECOND)
}

/// Resident memory of a process: `VmRSS` of proc_pid_status(5).
fn rss_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Disk space that a file takes; 0 if there is none.
fn allocated(path: &Path) -> u64 {
    // Blocks of stat(2) are 512 bytes, whatever the file system's are.
    fs::metadata(path).map(|file| file.blocks() * 512).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn this_process_has_cost_something() {
        let me = std::process::id();
        assert!(rss_bytes(me).unwrap() > 1 << 20);
        assert!(cpu_ms(me).is_some());
        assert!(cpu_ms(u32::MAX).is_none());
        assert!(allocated(&std::env::current_exe().unwrap()) > 0);
    }
}
