//! Making a template: a VM without a command, an environment or an instance is booted, parked and saved.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aegis_config::Asset;
use aegis_lifecycle::ports::Worker as _;
use aegis_proto::saved::{RAM_FILE, SAVED_FILE, STATE_FILE};
use aegis_proto::worker::{BootFailure, ExitReason, WorkerConfig};
use aegis_types::{InstanceId, Ram, VmId};
use tokio::task;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::key::Key;
use super::template::Template;
use crate::launcher::disk::DISK_FILE;
use crate::launcher::files::{self, Flush};
use crate::launcher::machine::{BOOT_ATTEMPTS, Machine, Machines};
use crate::launcher::start::{Priority, start};
use crate::launcher::worker_client::WorkerClient;
use crate::saved;
use crate::text::chain;

/// A directory with this prefix is a build under way, or what is left of one.
pub(super) const BUILDING: &str = ".building-";
/// Time for a worker to end after its VM was saved or killed.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// Where a build happens.
struct Site {
    /// Becomes the template.
    dir: PathBuf,
    run_dir: PathBuf,
}

impl Site {
    fn clear(&self) {
        for dir in [&self.dir, &self.run_dir] {
            if let Err(error) = files::remove_dir(dir) {
                tracing::warn!(%error, path = %dir.display(), "cannot remove what is left of a template's build");
            }
        }
    }
}

/// Makes the template and puts it into its place. When it fails, or when it is cancelled, nothing is left of it.
///
/// # Errors
/// What was attempted and why it failed, for people.
pub(super) async fn build(
    machines: &Machines,
    machine: &Machine,
    key: &Key,
    cancel: &CancellationToken,
) -> Result<Template, String> {
    let began = Instant::now();
    let templates = machines.home.templates();
    let site = Site {
        dir: templates.join(format!("{BUILDING}{key}")),
        run_dir: machines.home.run().join(format!("template-{}", key.short())),
    };
    let target = templates.join(key.as_str());
    let saved = make(machines, machine, key, &site, cancel).await;
    let (key, machine) = (key.clone(), machine.clone());
    let finished = task::spawn_blocking(move || {
        let opened = saved.and_then(|()| finish(&site.dir, &target, &key, &machine));
        site.clear();
        opened
    });
    let template = finished.await.expect("writing files does not panic")?;
    tracing::info!(template = %template.key(), ms = began.elapsed().as_millis(), "a template is ready");
    Ok(template)
}

/// Leaves a saved VM in the directory of the site.
async fn make(
    machines: &Machines,
    machine: &Machine,
    key: &Key,
    site: &Site,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let empty = machines.assets.path(Asset::DiskTemplate).map_err(|e| chain(&e))?;
    let (dir, size) = (site.dir.clone(), machine.template_disk);
    let prepared = task::spawn_blocking(move || {
        files::make_empty_dir(&dir)?;
        files::copy_sparse(&empty, &dir.join(DISK_FILE), size.bytes(), Flush::Later)
    });
    let prepared = prepared.await.expect("copying files does not panic");
    prepared.map_err(|e| format!("cannot make its disk: {e}"))?;
    let config = config(machines, machine, key, site);
    // Of this build alone: when they have ended its worker is gone and reaped.
    let tasks = TaskTracker::new();
    let deadline = machines.boot_deadline();
    let started = start(&machine.worker, config, None, Priority::Low, deadline, &tasks).await;
    let worker = started.map_err(|e| e.message)?;
    let outcome = tokio::select! {
        outcome = save(&worker) => outcome,
        () = cancel.cancelled() => Err("aegisd is shutting down".to_owned()),
    };
    if outcome.is_err()
        && let Err(error) = worker.stop(Duration::ZERO).await
    {
        tracing::warn!(%error, "cannot stop the VM of a template");
    }
    drop(worker);
    tasks.close();
    if timeout(END_DEADLINE, tasks.wait()).await.is_err() {
        return outcome.and(Err("its worker does not end".to_owned()));
    }
    outcome
}

async fn save(worker: &WorkerClient) -> Result<(), String> {
    worker.wait_ready().await.map_err(|BootFailure { message, console }| match console.last() {
        Some(line) => format!("its VM did not boot: {message}; the console ends with: {line}"),
        None => format!("its VM did not boot: {message}"),
    })?;
    worker.hibernate().await.map_err(|e| format!("its VM could not be saved: {e}"))?;
    let exited = worker.exited().await;
    match exited.reason {
        ExitReason::Hibernated => Ok(()),
        _ => Err(format!("its VM ended instead of being saved: {}", exited.message)),
    }
}

/// Nothing in it belongs to an instance.
fn config(machines: &Machines, machine: &Machine, key: &Key, site: &Site) -> WorkerConfig {
    let bits = u64::from_str_radix(&key.as_str()[..16], 16).expect("a key has 32 hexadecimal digits");
    let ram = Ram::File { path: site.dir.join(RAM_FILE) };
    let vm = machine.vm(&VmId::from_random(bits), site.dir.join(DISK_FILE), None, ram, site.run_dir.clone());
    WorkerConfig {
        instance_id: InstanceId::from_unix_nanos(0),
        vm,
        hostname: "template".to_owned(),
        machine_id: "0".repeat(32),
        boot_timeout_ms: machines.boot_timeout_ms(),
        boot_attempts: BOOT_ATTEMPTS,
        restore: None,
        machine: machine.key.clone(),
        template: true,
        net: None,
        mounts: Vec::new(),
    }
}

/// Checks what was saved, brings it to the disk and gives it its name. Blocks.
fn finish(dir: &Path, target: &Path, key: &Key, machine: &Machine) -> Result<Template, String> {
    let saved = saved::read(dir).map_err(|e| e.to_string())?.ok_or("its VM was not saved")?;
    saved::check(dir, &saved, &machine.key, machine.memory)
        .map_err(|e| format!("what was saved cannot be used: {e}"))?;
    let placed = || {
        // No later crash of the host can damage it, whatever `saved` says: that is written before this is known.
        let durable = aegis_proto::saved::SavedVm { durable: true, ..saved };
        files::write_atomically(&dir.join(SAVED_FILE), &serde_json::to_vec(&durable)?)?;
        // Every VM pays for each page that is copied.
        files::drop_zeros(&dir.join(RAM_FILE))?;
        Template::describe(dir, key, machine)?;
        for name in [RAM_FILE, STATE_FILE, DISK_FILE, SAVED_FILE] {
            files::flush(&dir.join(name))?;
        }
        files::flush(dir)?;
        // One that could not be opened: nobody uses it.
        files::remove_dir(target)?;
        std::fs::rename(dir, target)?;
        target.parent().map_or(Ok(()), files::flush)
    };
    placed().map_err(|e: std::io::Error| format!("cannot write it to {}: {e}", target.display()))?;
    Template::open(target, key)
}
