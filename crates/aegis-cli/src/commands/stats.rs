//! `aegis stats`.

use aegis_api::{DaemonStats, InstanceStats, LastStart};
use aegis_types::Handle;

use super::Context;
use crate::error::CliError;
use crate::suggest::explain;
use crate::ui;

pub(crate) async fn run(context: &Context, target: Option<&str>, json: bool) -> Result<(), CliError> {
    let Some(target) = target else {
        let stats = context.client.stats().await?;
        return if json { ui::print_json(&stats) } else { ui::print(&table(&stats)) };
    };
    // The daemon knows what a name means, and says so when it means nothing.
    let id = match context.client.get(target).await {
        Ok(info) => info.id,
        Err(error) => return Err(explain(&context.client, target, error).await),
    };
    let mut stats = context.client.stats().await?.instances.into_iter();
    let Some(stats) = stats.find(|stats| stats.id == id) else {
        return Err(CliError::failure(format!("instance `{target}` was deleted in the meantime")));
    };
    if json { ui::print_json(&stats) } else { ui::print(&details(&stats)) }
}

fn table(stats: &DaemonStats) -> String {
    let rows: Vec<_> = stats.instances.iter().map(row).collect();
    let header = [
        "ID",
        "HANDLE",
        "STATE",
        "STARTS",
        "WAKES",
        "LAST START",
        "CPU",
        "RSS",
        "DISK",
        "IMAGE",
        "CONNS",
        "EXECS",
    ];
    let instances = if rows.is_empty() { "No instances\n".to_owned() } else { ui::table(header, &rows) };
    format!("{instances}Memory: {} of {} MiB given to VMs\n", stats.ram_used_mb, stats.ram_budget_mb)
}

fn row(stats: &InstanceStats) -> [String; 12] {
    let none = || "-".to_owned();
    let starts = stats.starts;
    [
        stats.id.to_string(),
        stats.handle.as_ref().map_or_else(none, Handle::to_string),
        stats.state.to_string(),
        (starts.cold + starts.template + starts.restore).to_string(),
        stats.wakes.to_string(),
        stats.last_start.as_ref().map_or_else(none, |start| format!("{} {} ms", start.kind, start.total_ms)),
        cpu(stats.cpu_ms),
        ui::size(stats.rss_bytes),
        ui::size(stats.disk_bytes),
        ui::size(stats.memory_image_bytes),
        stats.active_connections.to_string(),
        stats.active_execs.to_string(),
    ]
}

fn details(stats: &InstanceStats) -> String {
    let starts = stats.starts;
    let lines = [
        stats.handle.as_ref().map(|handle| ("Handle", handle.to_string())),
        Some(("ID", stats.id.to_string())),
        Some(("State", stats.state.to_string())),
        Some((
            "Starts",
            format!("{} cold, {} template, {} restore", starts.cold, starts.template, starts.restore),
        )),
        Some(("Wakes", stats.wakes.to_string())),
        stats.last_start.as_ref().map(|start| ("Last Start", phases(start))),
        Some(("CPU", cpu(stats.cpu_ms))),
        Some(("RSS", ui::size(stats.rss_bytes))),
        Some(("Disk", ui::size(stats.disk_bytes))),
        Some(("Memory Image", ui::size(stats.memory_image_bytes))),
        Some(("Connections", stats.active_connections.to_string())),
        Some(("Execs", stats.active_execs.to_string())),
    ];
    ui::fields(&lines.into_iter().flatten().collect::<Vec<_>>())
}

fn phases(start: &LastStart) -> String {
    let LastStart { kind, total_ms, vmm_ms, load_ms, guest_ms } = start;
    format!("{kind}, {total_ms} ms (VMM {vmm_ms} ms, load {load_ms} ms, guest {guest_ms} ms)")
}

fn cpu(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
