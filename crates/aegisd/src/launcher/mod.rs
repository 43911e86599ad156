//! The launcher of the lifecycle: a worker process per VM, and the files of instances.
//!
//! ```text
//! data/instances/<id>/upper.ext4   the instance's disk, a sparse copy of an empty one or of a template's
//! data/instances/<id>/memory/      its memory, while it runs or is hibernated: see `aegis_proto::saved`
//! data/logs/<id>.console.log       console of its last VM
//! run/<id>/                        while it has a VM: see `aegis_proto::worker`
//! ```
//! **Invariants:** a runtime directory exists while its VM may live, and names its worker. A disk appears complete or not
//! at all. A saved VM is used once, and not at all with another state of its disk: whatever else a VM is started
//! from, `saved.json` is gone first. Nothing is left running by a failed launch.

mod adopt;
pub(crate) mod disk;
pub(crate) mod files;
pub(crate) mod machine;
mod memory;
mod prepare;
mod process;
mod spawn;
pub(crate) mod start;
pub(crate) mod worker_client;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use aegis_config::Home;
use aegis_lifecycle::ports::{self, Adoption, LaunchError, Launched, Worker as _};
use aegis_lifecycle::record::InstanceSpec;
use aegis_proto::worker::{CONSOLE_FILE, CONTROL_SOCKET, ExitReason};
use aegis_types::{InstanceId, VmId};
use async_trait::async_trait;
use tokio::task;
use tokio_util::task::TaskTracker;

use crate::accel::Accel;
use crate::logs::CONSOLE_SUFFIX;
use crate::networks::Networks;
use crate::socket;
use crate::templates::{TemplateOptions, Templates};
use crate::workspaces::Workspaces;
use machine::{Machine, Machines};
use memory::Memories;
use prepare::{Plan, Prepared, Source};
use start::{Priority, start};
use worker_client::WorkerClient;

/// Starts workers.
pub(crate) struct Launcher {
    plan: Arc<Plan>,
    accel: Arc<Accel>,
    /// Watchers of workers, and writers of saved memory.
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
        machines: Machines,
        accel: Arc<Accel>,
        networks: Arc<Networks>,
        workspaces: Arc<Workspaces>,
        templates: TemplateOptions,
    ) -> Self {
        let machines = Arc::new(machines);
        let plan = Plan {
            memories: Arc::new(Memories::new(machines.home.clone())),
            templates: Templates::new(Arc::clone(&machines), templates),
            machines,
            networks,
            workspaces,
        };
        Self { plan: Arc::new(plan), accel, tasks: TaskTracker::new() }
    }

    fn home(&self) -> &Home {
        &self.plan.machines.home
    }

    /// The templates that VMs are started from.
    pub(crate) fn templates(&self) -> &Arc<Templates> {
        &self.plan.templates
    }

    /// Goes on with what an earlier daemon did in the background: reads its templates, and brings the saved memory of
    /// these instances to the disk. Called once, when [`Launcher::reap_orphans`] has returned.
    pub(crate) async fn resume_background_work(&self, instances: Vec<InstanceId>) -> io::Result<()> {
        let plan = Arc::clone(&self.plan);
        let read = task::spawn_blocking(move || {
            plan.templates.load().map(|()| plan.memories.not_durable(&instances))
        });
        for id in read.await.expect("reading files does not panic")? {
            self.tasks.spawn(Arc::clone(&self.plan.memories).make_durable(id));
        }
        Ok(())
    }

    /// Brings the memory of a VM to the disk when it has been saved.
    fn watch(&self, id: &InstanceId, worker: &Arc<WorkerClient>) {
        let (memories, id, worker) = (Arc::clone(&self.plan.memories), id.clone(), Arc::clone(worker));
        self.tasks.spawn(async move {
            let reason = worker.exited().await.reason;
            drop(worker);
            if reason == ExitReason::Hibernated {
                memories.make_durable(id).await;
            }
        });
    }

    /// What follows a start: a template is made if there was none, and given up if it did not serve.
    fn follow_up(&self, machine: Machine, source: Source, worker: &Arc<WorkerClient>) {
        let (templates, worker) = (Arc::clone(self.templates()), Arc::clone(worker));
        match source {
            Source::Saved | Source::Kernel { template_wanted: false } => {}
            Source::Kernel { template_wanted: true } => {
                let wanted = async move { worker.wait_ready().await.is_ok() };
                templates.want(machine, wanted);
            }
            Source::Template { template, memory } => {
                // Its own file descriptor has been inherited.
                drop(memory);
                self.tasks.spawn(async move {
                    // Until then the worker may need its files.
                    let ready = worker.wait_ready().await;
                    let fallback = ready.ok().and_then(|ready| ready.fallback);
                    if let Some(why) = fallback {
                        let condemned =
                            task::spawn_blocking(move || templates.condemn(&template, &machine, why));
                        condemned.await.expect("removing files does not panic");
                    }
                });
            }
        }
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
        let home = self.home();
        let (run_dir, console, kept) = (home.run_dir(id), live_console(home, id), kept_console(home, id));
        let (memories, instance) = (Arc::clone(&self.plan.memories), id.clone());
        let tidied = task::spawn_blocking(move || {
            if let Err(error) = memories.tidy(&instance) {
                tracing::warn!(%error, %instance, "cannot remove the memory of a VM that is gone");
            }
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
        let accelerator = self.accel.decide().await.map_err(machine::missing)?.accelerator;
        let (plan, wanted, vm) = (Arc::clone(&self.plan), spec.clone(), vm.clone());
        let prepared = task::spawn_blocking(move || plan.prepare(&wanted, &vm, accelerator));
        let Prepared { machine, config, notes, source } =
            prepared.await.expect("preparing a VM does not panic")?;
        let memory = match &source {
            Source::Template { memory, .. } => memory.clone(),
            Source::Saved | Source::Kernel { .. } => None,
        };
        let deadline = self.plan.machines.boot_deadline();
        let worker = start(&machine.worker, config, memory, Priority::Normal, deadline, &self.tasks).await?;
        let worker = Arc::new(worker);
        self.watch(&spec.id, &worker);
        self.follow_up(machine, source, &worker);
        Ok(Launched { worker, notes })
    }

    async fn has_saved(&self, id: &InstanceId) -> bool {
        let (memories, id) = (Arc::clone(&self.plan.memories), id.clone());
        let found = task::spawn_blocking(move || memories.has_saved(&id));
        found.await.expect("reading a file does not panic")
    }

    async fn discard_saved(&self, id: &InstanceId) {
        let (memories, instance) = (Arc::clone(&self.plan.memories), id.clone());
        let discarded = task::spawn_blocking(move || memories.discard(&instance));
        if let Err(error) = discarded.await.expect("removing files does not panic") {
            tracing::warn!(%error, instance = %id, "cannot remove the saved memory");
        }
    }

    async fn adopt(&self, id: &InstanceId) -> Adoption {
        self.adopt_worker(id).await
    }

    async fn clean_up(&self, id: &InstanceId) {
        self.forget_vm(id).await;
    }

    async fn remove(&self, spec: &InstanceSpec) -> io::Result<()> {
        let (home, id) = (self.home(), &spec.id);
        let dirs = [home.run_dir(id), home.instance_dir(id)];
        let console = kept_console(home, id);
        let (memories, id) = (Arc::clone(&self.plan.memories), id.clone());
        let (workspaces, spec) = (Arc::clone(&self.plan.workspaces), spec.clone());
        let removed = task::spawn_blocking(move || {
            // First, and by whoever has the lock of it: nothing is written there any more then.
            memories.discard(&id)?;
            dirs.iter().try_for_each(|dir| files::remove_dir(dir))?;
            workspaces.remove_own(&spec)?;
            files::remove_file(&console)
        });
        removed.await.expect("removing files does not panic")
    }
}
