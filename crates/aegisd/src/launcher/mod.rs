//! The launcher of the lifecycle: a worker process per VM, and the files of instances.
//!
//! ```text
//! data/instances/<id>/upper.ext4   the instance's disk, a sparse copy of the template
//! data/logs/<id>.console.log       console of its last VM
//! run/<id>/                        while it has a VM: see `aegis_proto::worker`
//! ```
//! **Invariant:** a runtime directory exists while its VM may live, and names its worker. A disk appears complete or not
//! at all. Nothing is left running by a failed launch.

mod adopt;
pub(crate) mod files;
mod prepare;
mod process;
mod spawn;
mod worker_client;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aegis_config::Home;
use aegis_lifecycle::ports::{self, Adoption, LaunchError, Launched};
use aegis_lifecycle::record::InstanceSpec;
use aegis_proto::worker::{CONSOLE_FILE, CONTROL_SOCKET};
use aegis_types::{InstanceId, VmId};
use async_trait::async_trait;
use tokio::task;
use tokio_util::task::TaskTracker;

use crate::accel::Accel;
use crate::assets::Assets;
use crate::images::Images;
use crate::logs::CONSOLE_SUFFIX;
use crate::socket;
use crate::text::chain;
use prepare::Plan;
use process::Process;
use worker_client::WorkerClient;

/// Starts workers.
pub(crate) struct Launcher {
    plan: Arc<Plan>,
    accel: Arc<Accel>,
    /// Watchers of workers.
    tasks: TaskTracker,
}

/// Where the console of an instance's last VM is kept.
pub(crate) fn kept_console(home: &Home, id: &InstanceId) -> PathBuf {
    home.logs().join(format!("{id}{CONSOLE_SUFFIX}"))
}

/// Where the console of an instance's live VM is.
pub(crate) fn live_console(home: &Home, id: &InstanceId) -> PathBuf {
    home.run_dir(id).join(CONSOLE_FILE)
}

impl Launcher {
    pub(crate) fn new(
        home: Home,
        assets: Arc<Assets>,
        images: Arc<Images>,
        accel: Arc<Accel>,
        boot_timeout: Duration,
    ) -> Self {
        let plan = Arc::new(Plan { home, assets, images, boot_timeout });
        Self { plan, accel, tasks: TaskTracker::new() }
    }

    /// Refuses a home in which the sockets of workers would have too long paths.
    pub(crate) fn check_home(home: &Home) -> io::Result<()> {
        let longest = InstanceId::from_unix_nanos(u64::MAX);
        socket::check_length(&home.run_dir(&longest).join(CONTROL_SOCKET))
    }

    /// Waits until no worker of ours is left. Called when all VMs are gone.
    pub(crate) async fn workers_gone(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Removes the runtime directory of a VM that is gone and keeps its console.
    async fn forget_vm(&self, id: &InstanceId) {
        let (run_dir, console, kept) = (
            self.plan.home.run_dir(id),
            live_console(&self.plan.home, id),
            kept_console(&self.plan.home, id),
        );
        let tidied = task::spawn_blocking(move || {
            if let Err(error) = files::keep_console(&console, &kept) {
                tracing::warn!(%error, "cannot keep the console of a VM");
            }
            files::remove_dir(&run_dir)
        });
        if let Err(error) = tidied.await.expect("removing files does not panic") {
            tracing::warn!(%error, instance = %id, "cannot remove a runtime directory");
        }
    }
}

#[async_trait]
impl ports::Launcher for Launcher {
    async fn launch(&self, spec: &InstanceSpec, vm: &VmId) -> Result<Launched, LaunchError> {
        let accelerator = self.accel.decide().await.map_err(prepare::missing)?.accelerator;
        let (plan, spec, vm) = (Arc::clone(&self.plan), spec.clone(), vm.clone());
        let spawned = task::spawn_blocking(move || {
            let (worker, config) = plan.prepare(&spec, &vm, accelerator)?;
            let run_dir = config.vm.runtime_dir.clone();
            match spawn::spawn(&worker, &config) {
                Ok(child) => Ok((child, run_dir)),
                Err(e) => {
                    let _ = files::remove_dir(&run_dir);
                    Err(LaunchError { message: chain(&e), hint: None })
                }
            }
        });
        let (mut child, run_dir) = spawned.await.expect("starting a worker does not panic")?;
        let connected = match Process::of_child(child.id()) {
            Ok(process) => worker_client::connect(&run_dir).await.map(|control| (control, process)),
            Err(e) => Err(e),
        };
        match connected {
            Ok((control, process)) => {
                let deadline = self.plan.boot_deadline();
                let process = Arc::new(process);
                let worker =
                    WorkerClient::new(control, &run_dir, process, Some(child), deadline, &self.tasks);
                Ok(Launched { worker: Arc::new(worker), notes: Vec::new() })
            }
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                let _ = files::remove_dir(&run_dir);
                Err(LaunchError { message: format!("cannot reach the worker: {e}"), hint: None })
            }
        }
    }

    async fn has_saved(&self, _id: &InstanceId) -> bool {
        false
    }

    async fn discard_saved(&self, _id: &InstanceId) {}

    async fn adopt(&self, id: &InstanceId) -> Adoption {
        self.adopt_worker(id).await
    }

    async fn clean_up(&self, id: &InstanceId) {
        self.forget_vm(id).await;
    }

    async fn remove(&self, id: &InstanceId) -> io::Result<()> {
        let dirs = [self.plan.home.run_dir(id), self.plan.home.instance_dir(id)];
        let console = kept_console(&self.plan.home, id);
        let removed = task::spawn_blocking(move || {
            dirs.iter().try_for_each(|dir| files::remove_dir(dir))?;
            files::remove_file(&console)
        });
        removed.await.expect("removing files does not panic")
    }
}
