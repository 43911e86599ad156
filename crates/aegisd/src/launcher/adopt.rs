//! What an earlier daemon left: live workers to take over, dead ones to clean up after.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_lifecycle::ports::Adoption;
use aegis_link::rpc::Client;
use aegis_proto::worker::{
    CONTROL_SOCKET, ExitReason, Exited, IDENTITY_FILE, STATUS, STOP, Stop, WorkerIdentity,
};
use aegis_types::InstanceId;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::process::Process;
use super::worker_client::{WorkerClient, connect, read_exit};
use super::{Launcher, files};

/// Time for a worker without identity to introduce itself, or to end when it is told to.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

impl Launcher {
    /// Connects to the worker of this instance, or cleans up after it.
    pub(super) async fn adopt_worker(&self, id: &InstanceId) -> Adoption {
        let run_dir = self.home().run_dir(id);
        if !run_dir.exists() {
            return Adoption::None;
        }
        let gone = match find(&run_dir).await {
            Some((identity, process)) => match connect(&run_dir).await {
                Ok(control) => {
                    let deadline = self.plan.machines.boot_deadline();
                    let worker = WorkerClient::new(control, &run_dir, process, None, deadline, &self.tasks);
                    let worker = Arc::new(worker);
                    self.watch(id, &worker);
                    return Adoption::Alive { vm: identity.vm_id, worker };
                }
                Err(e) => {
                    process.kill().await;
                    // One that had just ended, or that nobody has reaped yet, left its note.
                    let killed = || Exited {
                        reason: ExitReason::VmmDied,
                        message: format!("the worker did not accept a connection ({e}) and was killed"),
                    };
                    Some(read_exit(&run_dir).unwrap_or_else(killed))
                }
            },
            None => read_exit(&run_dir),
        };
        self.forget_vm(id).await;
        Adoption::Gone(gone)
    }

    /// Ends the VMs and removes the files of everything that is no instance.
    pub(crate) async fn reap_orphans(&self, instances: &[InstanceId]) -> io::Result<()> {
        let known: HashSet<&str> = instances.iter().map(InstanceId::as_str).collect();
        for dir in [self.home().run(), self.home().instances()] {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
                    continue;
                }
                let path = entry.path();
                tracing::info!(path = %path.display(), "removing what belongs to no instance");
                if let Some((_, process)) = find(&path).await {
                    process.kill().await;
                }
                let removed = if entry.file_type()?.is_dir() {
                    files::remove_dir(&path)
                } else {
                    files::remove_file(&path)
                };
                if let Err(error) = removed {
                    tracing::warn!(%error, path = %path.display(), "cannot remove it");
                }
            }
        }
        Ok(())
    }
}

/// The live worker of a runtime directory.
async fn find(run_dir: &Path) -> Option<(WorkerIdentity, Arc<Process>)> {
    let identity = match identity(run_dir) {
        Some(identity) => identity,
        None => introduced(run_dir).await?,
    };
    match Process::find(&identity) {
        Ok(process) => process.map(|process| (identity, Arc::new(process))),
        Err(error) => {
            tracing::warn!(%error, pid = identity.pid, "cannot look for a worker");
            None
        }
    }
}

fn identity(run_dir: &Path) -> Option<WorkerIdentity> {
    serde_json::from_slice(&fs::read(run_dir.join(IDENTITY_FILE)).ok()?).ok()
}

/// A daemon that died while a worker started leaves one that only its socket knows. It says who it is before it answers
/// anything; one that does not is stopped.
async fn introduced(run_dir: &Path) -> Option<WorkerIdentity> {
    let stream = UnixStream::connect(run_dir.join(CONTROL_SOCKET)).await.ok()?;
    let (rpc, _) = Client::new(stream);
    let _ = timeout(ANSWER_DEADLINE, rpc.call::<_, Value>(STATUS, &())).await;
    if let Some(identity) = identity(run_dir) {
        return Some(identity);
    }
    tracing::info!(dir = %run_dir.display(), "stopping a worker that nobody knows");
    let stop = Stop { grace_ms: 0 };
    if timeout(ANSWER_DEADLINE, rpc.call::<_, Value>(STOP, &stop)).await.is_err() {
        tracing::warn!(dir = %run_dir.display(), "it does not answer");
    }
    None
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
