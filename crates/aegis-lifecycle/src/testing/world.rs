//! Launcher, registry and log store in memory.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aegis_proto::logs::LogLine;
use aegis_types::{DiskSize, Handle, ImageName, InstanceId, InstanceState, Mib, Policy, Vcpus, VmId};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use super::guest::Guest;
use crate::ports::{
    Adoption, Injection, Injector, LaunchError, Launched, Launcher, LogSink, Registry, RegistryError,
    SystemMessage,
};
use crate::record::{InstanceSpec, Record};
use crate::{Defaults, Instance, Limits, Manager, Ports, Status};

/// An instance that does nothing by itself.
pub(crate) fn spec(n: u64, handle: &str) -> InstanceSpec {
    with_policy(n, handle, Policy { never_pause: true, ..Policy::default() })
}

pub(crate) fn with_policy(n: u64, handle: &str, policy: Policy) -> InstanceSpec {
    InstanceSpec {
        id: InstanceId::from_unix_nanos(n),
        handle: Some(Handle::parse(handle).unwrap()),
        image: ImageName::parse("base").unwrap(),
        command: vec!["echo".to_owned(), "hi".to_owned()],
        env: BTreeMap::new(),
        workdir: None,
        user: None,
        tty: false,
        stdin: false,
        oci_defaults: false,
        memory: Mib::DEFAULT,
        disk: DiskSize::DEFAULT,
        vcpus: Vcpus::DEFAULT,
        policy,
        parent: None,
        mounts: Vec::new(),
        auto_workspace: false,
        created_at: Timestamp::UNIX_EPOCH,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Output(String),
    Info(String),
    Error(String),
}

type Prepare = Box<dyn Fn(&Guest) + Send>;

/// Everything outside the lifecycle.
pub(crate) struct World {
    pub(crate) guests: Mutex<Vec<Arc<Guest>>>,
    /// Done to each guest before its worker is handed out.
    pub(crate) prepare: Mutex<Option<Prepare>>,
    pub(crate) launch_error: Mutex<Option<LaunchError>>,
    /// The next look at what a command is given ends so.
    pub(crate) inject_error: Mutex<Option<LaunchError>>,
    /// What launches need is there when this is true.
    pub(crate) is_provided: watch::Sender<bool>,
    /// What the next launch needs cannot be had.
    pub(crate) provide_error: Mutex<Option<LaunchError>>,
    /// Launches wait until this is true.
    pub(crate) may_launch: watch::Sender<bool>,
    pub(crate) adoption: Mutex<HashMap<InstanceId, Adoption>>,
    pub(crate) calls: Mutex<Vec<String>>,
    pub(crate) remove_fails: AtomicBool,
    pub(crate) registry_fails: AtomicBool,
    pub(crate) records: Mutex<HashMap<InstanceId, Record>>,
    owners: Mutex<HashMap<VmId, InstanceId>>,
    lines: Mutex<Vec<Line>>,
    stored: Mutex<HashMap<VmId, u64>>,
}

impl World {
    pub(crate) fn new() -> (Arc<Self>, Manager) {
        Self::with_budget(None)
    }

    pub(crate) fn with_budget(ram_budget: Option<u64>) -> (Arc<Self>, Manager) {
        let world = Arc::new(Self {
            guests: Mutex::default(),
            prepare: Mutex::default(),
            launch_error: Mutex::default(),
            inject_error: Mutex::default(),
            is_provided: watch::Sender::new(true),
            provide_error: Mutex::default(),
            may_launch: watch::Sender::new(true),
            adoption: Mutex::default(),
            calls: Mutex::default(),
            remove_fails: AtomicBool::new(false),
            registry_fails: AtomicBool::new(false),
            records: Mutex::default(),
            owners: Mutex::default(),
            lines: Mutex::default(),
            stored: Mutex::default(),
        });
        let manager = world.manager(ram_budget);
        (world, manager)
    }

    /// Another daemon in this world.
    pub(crate) fn manager(self: &Arc<Self>, ram_budget: Option<u64>) -> Manager {
        let ports = Ports {
            launcher: Arc::new(self.port()),
            injector: Arc::new(self.port()),
            registry: Arc::new(self.port()),
            logs: Arc::new(self.port()),
        };
        let defaults =
            Defaults { pause_after: Duration::from_secs(60), hibernate_after: Duration::from_secs(300) };
        Manager::new(ports, Limits { defaults, ram_budget })
    }

    pub(crate) fn port(self: &Arc<Self>) -> Port {
        Port(Arc::clone(self))
    }

    /// Guests of this instance, oldest first.
    pub(crate) fn guests_of(&self, id: &InstanceId) -> Vec<Arc<Guest>> {
        let owners = self.owners.lock().unwrap();
        let guests = self.guests.lock().unwrap();
        guests.iter().filter(|g| owners.get(&g.vm) == Some(id)).cloned().collect()
    }

    /// The guest whose memory is saved for this instance.
    pub(crate) fn saved(&self, id: &InstanceId) -> Option<Arc<Guest>> {
        self.guests_of(id).into_iter().rfind(|g| g.saved.load(Ordering::SeqCst))
    }

    pub(crate) fn prepare(&self, change: impl Fn(&Guest) + Send + 'static) {
        *self.prepare.lock().unwrap() = Some(Box::new(change));
    }

    pub(crate) fn guest(&self, index: usize) -> Arc<Guest> {
        Arc::clone(&self.guests.lock().unwrap()[index])
    }

    pub(crate) fn boots(&self) -> usize {
        self.guests.lock().unwrap().len()
    }

    pub(crate) fn record(&self, n: u64) -> Option<Record> {
        self.records.lock().unwrap().get(&InstanceId::from_unix_nanos(n)).cloned()
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap().clone()
    }

    pub(crate) fn stored(&self, vm: &VmId, seq: u64) {
        self.stored.lock().unwrap().insert(vm.clone(), seq);
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Waits, in the time of the test, until the status is as wanted.
    pub(crate) async fn until(instance: &Instance, wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut status = instance.watch();
        let found = timeout(Duration::from_secs(600), status.wait_for(wanted)).await;
        found.expect("the state is reached").unwrap().clone()
    }

    /// Waits, in the time of the test, until this is true.
    pub(crate) async fn eventually(mut is_true: impl FnMut() -> bool) {
        let wait = async {
            while !is_true() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(600), wait).await.expect("it becomes true");
    }

    pub(crate) async fn until_state(instance: &Instance, state: InstanceState) -> Status {
        Self::until(instance, |s| s.state == state).await
    }

    fn called(&self, what: &str) {
        self.calls.lock().unwrap().push(what.to_owned());
    }
}

pub(crate) struct Port(Arc<World>);

#[async_trait::async_trait]
impl Launcher for Port {
    async fn provide(&self, _: &InstanceSpec) -> Result<(), LaunchError> {
        let mut is_provided = self.0.is_provided.subscribe();
        let _ = is_provided.wait_for(|is| *is).await;
        self.0.provide_error.lock().unwrap().take().map_or(Ok(()), Err)
    }

    async fn launch(&self, spec: &InstanceSpec, vm: &VmId) -> Result<Launched, LaunchError> {
        self.0.called("launch");
        let mut may_launch = self.0.may_launch.subscribe();
        let _ = may_launch.wait_for(|may| *may).await;
        if let Some(error) = self.0.launch_error.lock().unwrap().take() {
            return Err(error);
        }
        let guest = Arc::new(Guest::new(vm.clone()));
        if let Some(saved) = self.0.saved(&spec.id) {
            saved.saved.store(false, Ordering::SeqCst);
            guest.go_on_from(&saved);
        }
        if let Some(prepare) = &*self.0.prepare.lock().unwrap() {
            prepare(&guest);
        }
        self.0.owners.lock().unwrap().insert(vm.clone(), spec.id.clone());
        self.0.guests.lock().unwrap().push(Arc::clone(&guest));
        Ok(Launched { worker: Arc::new(guest), notes: Vec::new() })
    }

    async fn has_saved(&self, id: &InstanceId) -> bool {
        self.0.saved(id).is_some()
    }

    async fn discard_saved(&self, id: &InstanceId) {
        if let Some(saved) = self.0.saved(id) {
            saved.saved.store(false, Ordering::SeqCst);
            self.0.called("discard");
        }
    }

    async fn adopt(&self, id: &InstanceId) -> Adoption {
        self.0.adoption.lock().unwrap().remove(id).unwrap_or(Adoption::None)
    }

    async fn clean_up(&self, id: &InstanceId) {
        assert!(self.0.guests_of(id).iter().all(|g| !g.is_alive()), "cleaned under a live VM");
        self.0.called("clean_up");
    }

    async fn remove(&self, _: &InstanceSpec) -> io::Result<()> {
        self.0.called("remove");
        if self.0.remove_fails.load(Ordering::SeqCst) { Err(io::Error::other("busy")) } else { Ok(()) }
    }
}

#[async_trait::async_trait]
impl Injector for Port {
    async fn inject(&self, spec: &InstanceSpec, _: &VmId) -> Result<Injection, LaunchError> {
        match self.0.inject_error.lock().unwrap().take() {
            Some(error) => Err(error),
            None => Ok(Injection {
                command: spec.command.clone(),
                workdir: spec.workdir.clone(),
                user: spec.user.clone(),
                env: spec.env.clone(),
                secret_files: Vec::new(),
                notes: Vec::new(),
            }),
        }
    }
}

#[async_trait::async_trait]
impl Registry for Port {
    async fn save(&self, record: &Record) -> Result<(), RegistryError> {
        if self.0.registry_fails.load(Ordering::SeqCst) {
            return Err(RegistryError("disk full".to_owned()));
        }
        self.0.records.lock().unwrap().insert(record.spec.id.clone(), record.clone());
        Ok(())
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), RegistryError> {
        if self.0.registry_fails.load(Ordering::SeqCst) {
            return Err(RegistryError("disk full".to_owned()));
        }
        self.0.records.lock().unwrap().remove(id);
        Ok(())
    }
}

#[async_trait::async_trait]
impl LogSink for Port {
    async fn output(&self, _: &InstanceId, vm: &VmId, line: LogLine) {
        self.0.stored(vm, line.seq);
        let text = String::from_utf8_lossy(&line.bytes).into_owned();
        self.0.lines.lock().unwrap().push(Line::Output(text));
    }

    async fn system(&self, _: &InstanceId, message: SystemMessage) {
        let line = match message {
            SystemMessage::Info(text) => Line::Info(text),
            SystemMessage::Error(text) => Line::Error(text),
        };
        self.0.lines.lock().unwrap().push(line);
    }

    async fn last_seq(&self, _: &InstanceId, vm: &VmId) -> u64 {
        self.0.stored.lock().unwrap().get(vm).copied().unwrap_or(0)
    }
}

/// How a test says that a worker is there already.
pub(crate) fn alive(guest: &Arc<Guest>) -> Adoption {
    Adoption::Alive { vm: guest.vm.clone(), worker: Arc::new(Arc::clone(guest)) }
}
