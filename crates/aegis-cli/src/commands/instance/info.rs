//! `aegis instance info`.

use std::path::Path;
use std::time::Duration;

use aegis_api::{Endpoint, InstanceInfo};
use aegis_types::{GuestPort, Mount, RestartPolicy};

use super::{Context, get, ports};
use crate::error::CliError;
use crate::ui;

pub(super) async fn run(context: &Context, target: &str, json: bool) -> Result<(), CliError> {
    let info = get(context, target).await?;
    if json {
        return ui::print_json(&info);
    }
    let some = |label, value: Option<String>| value.map(|value| (label, value));
    let (idleness, lease) = (idleness(&info), lease(&info));
    let lines = [
        some("Handle", info.handle.map(String::from)),
        some("ID", Some(info.id.into())),
        some("Parent", info.parent_id.map(String::from)),
        some("State", Some(info.state.to_string())),
        some("Enabled", Some(info.enabled.to_string())),
        some("Image", Some(info.image_ref.into())),
        some("Image Digest", info.image_digest),
        some("Manifest", info.image_manifest.map(String::from)),
        some("Command", Some(ui::command_line(&info.command)).filter(|text| !text.is_empty())),
        some("User", info.user),
        some("Working Dir", info.workdir),
        some("OCI Defaults", info.oci_defaults.then(|| "true".to_owned())),
        some("Attach", streams(info.stdin, info.tty)),
        some("Environment", Some(info.env_keys.join(" ")).filter(|keys| !keys.is_empty())),
        some("Secrets", ui::secrets(&info.secret_keys, &info.secret_files)),
        some("Memory", Some(info.memory_mb.to_string())),
        some("Disk", Some(info.disk_mb.to_string())),
        some("CPUs", Some(info.vcpus.get().to_string())),
        some("Workspace", info.workspace.map(|path| workspace(&path, info.auto_workspace))),
        some("Mounts", mounts(&info.mounts)),
        some("Network", Some(info.net.policy.to_string())),
        some("Host Ports", host_ports(&info.net.host_ports)),
        some("Endpoints", endpoints(&info.endpoints)),
        some("Connections", Some(info.active_connections.to_string())),
        some("Execs", Some(info.active_execs.to_string())),
        some("Attached", Some(info.attached.to_string()).filter(|_| info.attached > 0)),
        some("Idleness", idleness),
        some("Lease", lease),
        some("Max Lifetime", info.max_lifetime_ms.map(time)),
        some("Restart", Some(info.restart.to_string()).filter(|_| info.restart != RestartPolicy::No)),
        some("Ephemeral", info.ephemeral.then(|| "true".to_owned())),
        some("Accelerator", info.accelerator.map(|a| a.to_string())),
        some("Confinement", info.confinement),
        some("Harness", info.harness_version),
        some("Start", start(info.start_kind.map(|kind| kind.as_str()), info.start_ms.or(info.boot_ms))),
        some("Wakes", Some(info.wakes.to_string())),
        some("Restarts", Some(info.restarts.to_string()).filter(|_| info.restarts > 0)),
        some("Crashes", Some(info.crashes.to_string()).filter(|_| info.crashes > 0)),
        some("Created", Some(ui::time(info.created_at))),
        some("Updated", Some(ui::time(info.updated_at))),
        some("Last Active", info.last_active_at.map(ui::time)),
        some("Hibernated At", info.hibernated_at.map(ui::time)),
        some("Stopped At", info.stopped_at.map(ui::time)),
        some("Stop Reason", info.stop_reason.map(|reason| reason.to_string())),
        some("Exit Code", info.exit_code.map(|code| code.to_string())),
        some("Last Error", info.last_error),
    ];
    ui::print(&ui::fields(&lines.into_iter().flatten().collect::<Vec<_>>()))
}

/// What clients that attach to the command have of it beside its output.
fn streams(stdin: bool, tty: bool) -> Option<String> {
    match (stdin, tty) {
        (false, false) => None,
        (true, false) => Some("input".to_owned()),
        (false, true) => Some("terminal".to_owned()),
        (true, true) => Some("input, terminal".to_owned()),
    }
}

fn workspace(path: &Path, auto: bool) -> String {
    format!("{}{}", path.display(), if auto { " (deleted with the instance)" } else { "" })
}

/// One line below the label for each.
fn mounts(mounts: &[Mount]) -> Option<String> {
    let line = |mount: &Mount| {
        let read_only = if mount.read_only { " (read-only)" } else { "" };
        format!("\n  {} -> {}{read_only}", mount.guest, mount.host.display())
    };
    (!mounts.is_empty()).then(|| mounts.iter().map(line).collect())
}

fn host_ports(ports: &[GuestPort]) -> Option<String> {
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    (!ports.is_empty()).then(|| ports.join(", "))
}

fn time(ms: u64) -> String {
    ui::duration(Duration::from_millis(ms))
}

/// One line below the label for each.
fn endpoints(endpoints: &[Endpoint]) -> Option<String> {
    let line = |endpoint: &Endpoint| {
        let arrow = ports::arrow(endpoint.protocol, endpoint.public_port, endpoint.guest_port);
        let problem = endpoint.problem.as_ref().map(|problem| format!(" ({problem})")).unwrap_or_default();
        format!("\n  {arrow}{problem}")
    };
    (!endpoints.is_empty()).then(|| endpoints.iter().map(line).collect())
}

/// What happens when it has nothing to do. Daemons of old say nothing about it.
fn idleness(info: &InstanceInfo) -> Option<String> {
    let pause = match info.pause_after_ms {
        _ if info.never_pause => "never paused".to_owned(),
        Some(ms) => format!("paused after {}", time(ms)),
        None => return None,
    };
    let hibernate = match info.hibernate_after_ms {
        _ if info.no_hibernate => ", never hibernated".to_owned(),
        Some(ms) if !info.never_pause => format!(", hibernated after {} more", time(ms)),
        _ => String::new(),
    };
    Some(format!("{pause}{hibernate} (policy {})", info.idle_policy))
}

fn lease(info: &InstanceInfo) -> Option<String> {
    let until = info.lease_expires_at.map(|at| format!("until {}", ui::time(at)));
    let reason = info.lease_reason.as_ref().map(|reason| format!("({reason})"));
    let text = [Some("held".to_owned()), until, reason].into_iter().flatten().collect::<Vec<_>>().join(" ");
    info.lease_held.then_some(text)
}

fn start(kind: Option<&str>, ms: Option<u64>) -> Option<String> {
    let time = ms.map(|ms| format!("{ms} ms"));
    match (kind, time) {
        (Some(kind), Some(time)) => Some(format!("{kind}, {time}")),
        (kind, time) => time.or(kind.map(str::to_owned)),
    }
}
