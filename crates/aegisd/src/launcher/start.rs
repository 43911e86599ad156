//! From the configuration of a worker to a connection to it.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aegis_lifecycle::ports::LaunchError;
use aegis_proto::worker::WorkerConfig;
use rustix::process::{Pid, setpriority_process};
use tokio::task;
use tokio_util::task::TaskTracker;

use super::process::Process;
use super::worker_client::{self, WorkerClient};
use super::{files, spawn};
use crate::text::chain;

/// Niceness of VMs that nobody waits for.
const LOW: i32 = 10;

/// How a VM competes with others for the host's CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Somebody waits for it.
    Normal,
    /// Nobody does.
    Low,
}

/// Starts a worker in the runtime directory that its configuration names. `memory` is the sealed memory of a template.
///
/// # Errors
/// Nothing is left running and no runtime directory is left behind.
pub(crate) async fn start(
    worker: &Path,
    config: WorkerConfig,
    memory: Option<Arc<File>>,
    priority: Priority,
    deadline: Duration,
    tasks: &TaskTracker,
) -> Result<WorkerClient, LaunchError> {
    let began = Instant::now();
    let worker = worker.to_owned();
    let spawned = task::spawn_blocking(move || {
        let run_dir = config.vm.runtime_dir.clone();
        let spawned = spawn::spawn(&worker, &config, memory.as_deref());
        if let (Ok(child), Priority::Low) = (&spawned, priority)
            && let Err(error) = lower(child.id())
        {
            tracing::debug!(%error, "cannot lower the priority of a worker");
        }
        spawned.map(|child| (child, run_dir.clone())).map_err(|e| {
            let _ = files::remove_dir(&run_dir);
            LaunchError { message: chain(&e), hint: None }
        })
    });
    let (mut child, run_dir) = spawned.await.expect("starting a worker does not panic")?;
    let spawned = began.elapsed();
    let connected = match Process::of_child(child.id()) {
        Ok(process) => worker_client::connect(&run_dir).await.map(|control| (control, process)),
        Err(e) => Err(e),
    };
    match connected {
        Ok((control, process)) => {
            let (spawn_us, all_us) = (spawned.as_micros(), began.elapsed().as_micros());
            tracing::debug!(dir = %run_dir.display(), spawn_us, all_us, "started a worker");
            Ok(WorkerClient::new(control, &run_dir, Arc::new(process), Some(child), deadline, tasks))
        }
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            let _ = files::remove_dir(&run_dir);
            Err(LaunchError { message: format!("cannot reach the worker: {e}"), hint: None })
        }
    }
}

/// Before the process has threads: those that it starts later, and its VMM, get the same.
fn lower(pid: u32) -> rustix::io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    setpriority_process(Some(pid), LOW)
}
