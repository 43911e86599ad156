//! All instances.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aegis_types::{Handle, InstanceId, InstanceState};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::budget::Budget;
use crate::driver::{Driver, Request};
use crate::error::CreateError;
use crate::family;
use crate::instance::Instance;
use crate::ports::{Injector, Launcher, LogSink, Registry};
use crate::record::{InstanceSpec, Record};
use crate::restore;
use crate::step::{Defaults, Rules};

/// Time on top of the grace in which workers are expected to be gone.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(10);
/// The same, if VMs are saved: some may still be booting, and many may share few cores.
const SAVE_MARGIN: Duration = Duration::from_secs(120);

/// What the lifecycle works with.
pub struct Ports {
    /// Starts workers.
    pub launcher: Arc<dyn Launcher>,
    /// Knows what commands are given.
    pub injector: Arc<dyn Injector>,
    /// Keeps records.
    pub registry: Arc<dyn Registry>,
    /// Keeps logs.
    pub logs: Arc<dyn LogSink>,
}

/// What applies to all instances.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Times of instances that ask for none.
    pub defaults: Defaults,
    /// Memory that all VMs may have together, in MiB; `None`: no bound.
    pub ram_budget: Option<u64>,
}

/// All instances of a daemon. Clones share them. Call [`Manager::shutdown`] before dropping the last one:
/// drivers hold on to what they need and end only then.
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
}

/// What the manager and the drivers share.
pub(crate) struct Shared {
    pub(crate) ports: Ports,
    pub(crate) budget: Arc<Budget>,
    defaults: Defaults,
    tasks: TaskTracker,
    directory: Mutex<Directory>,
}

#[derive(Default)]
struct Directory {
    instances: HashMap<InstanceId, Instance>,
    /// Names and ids of instances whose record is being written.
    reserved_handles: HashSet<Handle>,
    reserved_ids: HashSet<InstanceId>,
    closing: bool,
}

impl Manager {
    /// A manager without instances.
    pub fn new(ports: Ports, limits: Limits) -> Self {
        let shared = Shared {
            ports,
            budget: Budget::new(limits.ram_budget),
            defaults: limits.defaults,
            tasks: TaskTracker::new(),
            directory: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes over what an earlier daemon left: lives on with the workers that live, repairs the records of the
    /// rest. Returns when the state of every instance can be shown. Called once, before anything else.
    pub async fn restore(&self, records: Vec<Record>) {
        let mut restoring = JoinSet::new();
        for record in records {
            let shared = Arc::clone(&self.shared);
            restoring.spawn(async move { restore::restore(&shared, record).await });
        }
        while let Some(result) = restoring.join_next().await {
            if let Err(e) = result {
                tracing::error!(error = %e, "an instance could not be restored");
            }
        }
        for child in self.shared.instances() {
            family::keep_together(&self.shared, child);
        }
    }

    /// Records a new, enabled instance and starts to boot it. Its state is `starting` when this returns. A
    /// dropped call may still create the instance.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub async fn create(&self, spec: InstanceSpec) -> Result<Instance, CreateError> {
        let token = self.shared.reserve(&spec)?;
        let shared = Arc::clone(&self.shared);
        // In a task of its own: a caller that goes away between record and boot must not leave half an instance.
        let task = self.shared.tasks.spawn(async move {
            let outcome = restore::create(&shared, spec.clone()).await;
            let mut directory = shared.directory();
            directory.reserved_ids.remove(&spec.id);
            if let Some(handle) = &spec.handle {
                directory.reserved_handles.remove(handle);
            }
            let (instance, driver) = outcome.map_err(|e| CreateError::Registry(e.to_string()))?;
            directory.instances.insert(spec.id.clone(), instance.clone());
            if directory.closing {
                // Shutdown has told everybody; tell this one, too. Its queue is empty.
                let _ = instance.requests.try_send(Request::Shutdown { grace: Duration::ZERO, save: false });
            }
            drop(directory);
            shared.spawn(driver);
            family::keep_together(&shared, instance.clone());
            drop(token);
            Ok(instance)
        });
        task.await.unwrap_or(Err(CreateError::ShuttingDown))
    }

    /// The instance with this id or, if there is none, with this name.
    pub fn find(&self, target: &str) -> Option<Instance> {
        let directory = self.shared.directory();
        let by_id = InstanceId::parse(target).ok().and_then(|id| directory.instances.get(&id));
        let found = by_id.or_else(|| {
            directory
                .instances
                .values()
                .find(|i| i.spec.handle.as_ref().is_some_and(|h| h.as_str() == target))
        });
        found.cloned()
    }

    /// All instances, oldest first.
    pub fn list(&self) -> Vec<Instance> {
        let mut all = self.shared.instances();
        all.sort_by(|a, b| (a.spec.created_at, &a.spec.id).cmp(&(b.spec.created_at, &b.spec.id)));
        all
    }

    /// Memory that all VMs may have together, if there is a bound, and what they have, in MiB.
    pub fn memory(&self) -> (Option<u64>, u64) {
        self.shared.budget.figures()
    }

    /// Refuses new work, ends all VMs at once and waits until they are gone, with force after the grace. With `save`,
    /// those that may be hibernated are.
    pub async fn shutdown(&self, grace: Duration, save: bool) {
        let instances: Vec<Instance> = {
            let mut directory = self.shared.directory();
            directory.closing = true;
            directory.instances.values().cloned().collect()
        };
        self.shared.tasks.close();
        let margin = if save { SAVE_MARGIN } else { SHUTDOWN_MARGIN };
        for (grace, save, margin) in [(grace, save, margin), (Duration::ZERO, false, SHUTDOWN_MARGIN)] {
            let mut telling = JoinSet::new();
            for instance in instances.clone() {
                // A driver that ended already has nothing to stop.
                telling.spawn(async move {
                    drop(instance.requests.send(Request::Shutdown { grace, save }).await);
                });
            }
            if tokio::time::timeout(grace + margin, self.shared.tasks.wait()).await.is_ok() {
                return;
            }
        }
        tracing::error!("some VMs could not be stopped; the next start of the daemon takes them over");
    }
}

impl Shared {
    fn directory(&self) -> MutexGuard<'_, Directory> {
        // The data is consistent between statements, so a panic elsewhere does not spoil it.
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self, spec: &InstanceSpec) -> Result<TaskTrackerToken, CreateError> {
        let mut directory = self.directory();
        if directory.closing {
            return Err(CreateError::ShuttingDown);
        }
        if let Some(parent) = spec.parent.as_ref().filter(|id| !directory.instances.contains_key(*id)) {
            return Err(CreateError::NoParent(parent.clone()));
        }
        if directory.instances.contains_key(&spec.id) || directory.reserved_ids.contains(&spec.id) {
            return Err(CreateError::IdTaken(spec.id.clone()));
        }
        if let Some(handle) = &spec.handle {
            let other = directory.instances.values().find(|i| i.spec.handle.as_ref() == Some(handle));
            let state = match other {
                Some(other) => Some(other.status().state),
                None => directory.reserved_handles.contains(handle).then_some(InstanceState::Starting),
            };
            if let Some(state) = state {
                return Err(CreateError::HandleTaken { handle: handle.clone(), state });
            }
            directory.reserved_handles.insert(handle.clone());
        }
        directory.reserved_ids.insert(spec.id.clone());
        // Keeps a shutdown waiting from now on.
        Ok(self.tasks.token())
    }

    /// The rules of an instance.
    pub(crate) fn rules(&self, spec: &InstanceSpec) -> Rules {
        Rules::new(&spec.policy, &self.defaults)
    }

    /// All instances, in no order.
    pub(crate) fn instances(&self) -> Vec<Instance> {
        self.directory().instances.values().cloned().collect()
    }

    /// The instance with this id.
    pub(crate) fn instance(&self, id: &InstanceId) -> Option<Instance> {
        self.directory().instances.get(id).cloned()
    }

    /// Runs this beside the drivers, which end before it does.
    pub(crate) fn spawn_beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Makes the instance findable.
    pub(crate) fn insert(&self, instance: Instance) {
        self.directory().instances.insert(instance.spec.id.clone(), instance);
    }

    /// Makes the instance unfindable.
    pub(crate) fn forget(&self, id: &InstanceId) {
        self.directory().instances.remove(id);
    }

    /// Runs a driver until its instance is deleted or the daemon goes down.
    pub(crate) fn spawn(self: &Arc<Self>, driver: Driver) {
        self.tasks.spawn(driver.run());
    }
}
