//! The task that owns one instance.
//!
//! It takes requests and the reports of its subtasks one after the other, asks [`step`] what follows, performs
//! it and publishes the result. Nobody else changes the state, so there is nothing to lock. Everything that may
//! take time runs in a subtask and reports back; only the registry and the log store are waited for in place,
//! because their order matters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aegis_proto::worker::{Confinement, Ready};
use aegis_types::VmId;
use jiff::Timestamp;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::Instrument as _;

use crate::error::Denied;
use crate::instance::Instance;
use crate::manager::Shared;
use crate::ports::Worker;
use crate::record::{InstanceSpec, LastStop, Record};
use crate::status::{Status, VmStatus};
use crate::step::{Ask, Effect, Event, Phase, RequestId, State, StopCause, step};
use crate::text;

/// Requests that may wait for the driver; the next sender waits.
const REQUESTS: usize = 64;
/// Reports of subtasks that may wait for the driver; the next reporter waits.
const REPORTS: usize = 64;

/// What a driver can be told from outside.
pub(crate) enum Request {
    /// Somebody wants something.
    Ask {
        /// What.
        ask: Ask,
        /// Where the answer goes.
        reply: Reply,
    },
    /// The daemon goes down.
    Shutdown {
        /// Time for the guest's processes.
        grace: Duration,
    },
}

/// Where an answer goes. A caller that is gone does not need one.
pub(crate) enum Reply {
    /// For everything but a wake.
    Done(oneshot::Sender<Result<(), Denied>>),
    /// For a wake.
    Grant(oneshot::Sender<Result<Grant, Denied>>),
}

impl Reply {
    fn deny(self, denied: Denied) {
        match self {
            Self::Done(reply) => drop(reply.send(Err(denied))),
            Self::Grant(reply) => drop(reply.send(Err(denied))),
        }
    }
}

/// The right to use a running VM.
pub(crate) struct Grant {
    /// Its worker.
    pub(crate) worker: Arc<dyn Worker>,
    /// Dropped at the end of the use; a text says how the guest broke the rules.
    pub(crate) in_flight: oneshot::Sender<String>,
}

/// What subtasks tell the driver.
pub(crate) enum Report {
    /// Something for [`step`].
    Event(Event),
    /// A worker runs.
    Launched {
        /// Its VM.
        vm: VmId,
        /// The worker.
        worker: Arc<dyn Worker>,
    },
    /// The guest answered.
    Ready {
        /// Its VM.
        vm: VmId,
        /// What it said.
        ready: Ready,
        /// How well the worker is confined, if it could say.
        confinement: Option<Confinement>,
    },
    /// An exec session is over.
    ExecEnded,
}

/// A VM id that was never used.
pub(crate) fn fresh_vm_id() -> VmId {
    VmId::from_random(getrandom::u64().expect("getrandom(2) of a booted kernel cannot fail"))
}

/// The live VM of an instance.
pub(crate) struct Live {
    pub(crate) vm: VmId,
    /// Absent while it is being launched.
    pub(crate) worker: Option<Arc<dyn Worker>>,
    /// Locked while somebody talks to the guest and may still have something to report.
    pub(crate) talking: Arc<Mutex<()>>,
    /// The task that does.
    pub(crate) session: Option<AbortHandle>,
    ready: Option<Ready>,
    confinement: Option<Confinement>,
}

impl Live {
    /// A VM that is about to be launched.
    pub(crate) fn new(vm: VmId) -> Self {
        Self { vm, worker: None, talking: Arc::default(), session: None, ready: None, confinement: None }
    }

    /// A VM of an earlier daemon.
    pub(crate) fn adopted(vm: VmId, worker: Arc<dyn Worker>, confinement: Option<Confinement>) -> Self {
        Self { worker: Some(worker), confinement, ..Self::new(vm) }
    }
}

/// See the module.
pub(crate) struct Driver {
    pub(crate) spec: Arc<InstanceSpec>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Option<Live>,
    pub(crate) tasks: JoinSet<()>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) active_execs: u32,
    pub(crate) last_active_at: Option<Timestamp>,
    life_began_at: Option<Timestamp>,
    state: State,
    startup: Vec<Effect>,
    updated_at: Timestamp,
    last_stop: Option<LastStop>,
    waiting: HashMap<RequestId, Reply>,
    next_request: RequestId,
    inbox: mpsc::Receiver<Request>,
    reported: mpsc::Receiver<Report>,
}

impl Driver {
    /// A driver that is not running yet, and the handle to its instance.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        record: Record,
        (state, startup): (State, Vec<Effect>),
        live: Option<Live>,
    ) -> (Instance, Driver) {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let (reports, reported) = mpsc::channel(REPORTS);
        let spec = Arc::new(record.spec);
        let (status, watching) = watch::channel(Status {
            state: state.shown(),
            enabled: state.enabled,
            updated_at: record.updated_at,
            last_active_at: record.last_active_at,
            stopped: None,
            vm: None,
            active_execs: 0,
            deleted: false,
        });
        let mut driver = Driver {
            spec: Arc::clone(&spec),
            shared: Arc::clone(shared),
            live,
            tasks: JoinSet::new(),
            reports,
            status,
            active_execs: 0,
            last_active_at: record.last_active_at,
            life_began_at: record.life_began_at,
            state,
            startup,
            updated_at: record.updated_at,
            last_stop: record.last_stop,
            waiting: HashMap::new(),
            next_request: 0,
            inbox,
            reported,
        };
        driver.note(&driver.startup.clone());
        driver.publish();
        (Instance { spec, requests, status: watching }, driver)
    }

    /// Runs until the instance is deleted, or stopped because the daemon goes down.
    pub(crate) async fn run(self) {
        let name = self.spec.handle.as_ref().map(|h| h.as_str().to_owned()).unwrap_or_default();
        let span = tracing::info_span!("instance", id = %self.spec.id, name);
        self.drive().instrument(span).await;
    }

    async fn drive(mut self) {
        self.watch_adopted();
        let startup = std::mem::take(&mut self.startup);
        self.perform(startup).await;
        while !self.state.is_final() {
            tokio::select! {
                // What happened goes before what is wanted: nobody is woken in a VM that is known to be gone.
                biased;
                Some(report) = self.reported.recv() => self.hear(report).await,
                Some(request) = self.inbox.recv() => self.serve(request).await,
                Some(done) = self.tasks.join_next() => if let Err(e) = done && e.is_panic() {
                    tracing::error!(error = %e, "a task of the instance panicked");
                },
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        match request {
            Request::Shutdown { grace } => self.happen(Event::Shutdown { grace }).await,
            Request::Ask { ask, reply } => {
                let id = self.next_request;
                self.next_request += 1;
                self.waiting.insert(id, reply);
                if let Err(denied) = self.apply(Event::Request { id, ask }).await
                    && let Some(reply) = self.waiting.remove(&id)
                {
                    reply.deny(denied);
                }
            }
        }
    }

    async fn hear(&mut self, report: Report) {
        match report {
            Report::Event(event) => {
                self.before(&event);
                self.happen(event).await;
            }
            Report::Launched { vm, worker } => {
                self.launched(&vm, worker);
                self.happen(Event::Launched { vm }).await;
            }
            Report::Ready { vm, ready, confinement } => {
                if let Some(live) = self.live.as_mut().filter(|live| live.vm == vm) {
                    live.ready = Some(ready);
                    live.confinement = confinement;
                    self.publish();
                }
            }
            Report::ExecEnded => {
                self.active_execs -= 1;
                self.last_active_at = Some(Timestamp::now());
                self.publish();
            }
        }
    }

    /// Applies what cannot be denied.
    async fn happen(&mut self, event: Event) {
        if let Err(denied) = self.apply(event).await {
            tracing::error!(error = %denied, "an event was refused");
        }
    }

    async fn apply(&mut self, event: Event) -> Result<(), Denied> {
        let (state, effects) = step(&self.state, event)?;
        if effects.first() == Some(&Effect::Record) {
            let mut record = self.record(&state);
            if effects.iter().any(|e| matches!(e, Effect::Launch { .. })) {
                record.last_active_at = Some(record.updated_at);
            }
            self.shared.ports.registry.save(&record).await.map_err(|e| Denied::Registry(text::chain(&e)))?;
        }
        self.commit(state, &effects);
        self.perform(effects).await;
        Ok(())
    }

    fn commit(&mut self, state: State, effects: &[Effect]) {
        let (before, after) = (self.state.shown(), state.shown());
        if (before, self.state.enabled) != (after, state.enabled) {
            self.updated_at = Timestamp::now();
        }
        if before != after {
            let reason = state.stopped().map(|cause| cause.reason.as_str());
            tracing::info!(from = %before, to = %after, reason, "state changed");
        }
        self.state = state;
        self.note(effects);
        if self.live.as_ref().is_some_and(|live| self.state.vm() != Some(&live.vm)) {
            self.live = None;
        }
        if self.state.phase == Phase::Deleted {
            // Before anybody is told that it is gone.
            self.shared.forget(&self.spec.id);
        }
        self.publish();
    }

    /// Stamps what effects say with the time.
    fn note(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::RecordEnd(cause) => self.last_stop = Some(stamped(cause, Timestamp::now())),
                Effect::Launch { .. } => self.last_active_at = Some(Timestamp::now()),
                _ => {}
            }
        }
    }

    fn record(&self, state: &State) -> Record {
        Record {
            spec: InstanceSpec::clone(&self.spec),
            enabled: state.enabled,
            live: state.vm().is_some(),
            updated_at: Timestamp::now(),
            last_active_at: self.last_active_at,
            life_began_at: self.life_began_at,
            last_stop: self.last_stop.clone(),
        }
    }

    /// Writes the record of what happened. A failure leaves an older truth, which the next start repairs.
    pub(crate) async fn record_outcome(&self) {
        let record = Record { updated_at: self.updated_at, ..self.record(&self.state) };
        if let Err(e) = self.shared.ports.registry.save(&record).await {
            tracing::warn!(error = %text::chain(&e), "the end of the VM could not be recorded");
        }
    }

    pub(crate) fn publish(&self) {
        let stopped = self.state.stopped().map(|cause| {
            // Every end was stamped by `note`; an instance that never had one is as it was created.
            self.last_stop.clone().unwrap_or_else(|| stamped(cause, self.spec.created_at))
        });
        let vm = self.state.vm().map(|vm| {
            let live = self.live.as_ref().filter(|live| live.vm == *vm);
            VmStatus {
                vm_id: vm.clone(),
                ready: live.and_then(|live| live.ready.clone()),
                confinement: live.and_then(|live| live.confinement.clone()),
            }
        });
        self.status.send_replace(Status {
            state: self.state.shown(),
            enabled: self.state.enabled,
            updated_at: self.updated_at,
            last_active_at: self.last_active_at,
            stopped,
            vm,
            active_execs: self.active_execs,
            deleted: self.state.phase == Phase::Deleted,
        });
    }

    pub(crate) fn answer(&mut self, id: RequestId, outcome: Result<(), Denied>) {
        match (self.waiting.remove(&id), outcome) {
            (None, _) => {}
            (Some(reply), Err(denied)) => reply.deny(denied),
            (Some(Reply::Done(reply)), Ok(())) => drop(reply.send(Ok(()))),
            (Some(Reply::Grant(reply)), Ok(())) => match self.grant() {
                // A caller that is gone drops the grant, which ends the use.
                Some(grant) => drop(reply.send(Ok(grant))),
                None => drop(reply.send(Err(Denied::Stopping))),
            },
        }
    }
}

fn stamped(cause: &StopCause, at: Timestamp) -> LastStop {
    LastStop { at, reason: cause.reason, exit_code: cause.exit_code, error: cause.error.clone() }
}
