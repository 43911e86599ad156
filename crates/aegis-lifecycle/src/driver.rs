//! The task that owns one instance.
//!
//! It takes requests and the reports of its subtasks one after the other, asks [`step`] what follows, performs
//! it and publishes the result. Nobody else changes the state, so there is nothing to lock. Everything that may
//! take time runs in a subtask and reports back; only the registry and the log store are waited for in place,
//! because their order matters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aegis_proto::worker::{Ready, WorkerStatus};
use aegis_types::{InstanceState, StartKind, VmId};
use jiff::Timestamp;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

use crate::budget::Room;
use crate::error::Denied;
use crate::instance::Instance;
use crate::manager::Shared;
use crate::ports::Worker;
use crate::record::{InstanceSpec, LastStop, Record, Update};
use crate::status::{Counters, Lease, Status, VmStatus};
use crate::step::{Ask, Effect, Event, Goal, Phase, RequestId, State, StopCause, Timer, Use, Users, step};
use crate::tcp::InUse;
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
    /// Somebody wants it kept awake.
    Lease {
        /// For so long.
        ttl: Duration,
        /// What for.
        reason: Option<String>,
        /// Where the answer goes.
        reply: Reply,
    },
    /// Somebody asks for something else than before.
    Update {
        /// For what.
        update: Box<Update>,
        /// Where the answer goes.
        reply: Reply,
    },
    /// The daemon goes down.
    Shutdown {
        /// Time for the guest's processes.
        grace: Duration,
        /// VMs that may be saved are saved.
        save: bool,
    },
}

/// Where an answer goes. A caller that is gone does not need one.
pub(crate) enum Reply {
    /// For everything but a wake.
    Done(oneshot::Sender<Result<(), Denied>>),
    /// For a wake.
    Grant(oneshot::Sender<Result<Grant, Denied>>),
    /// For a use that needs no VM.
    Attach(oneshot::Sender<Result<InUse, Denied>>),
}

impl Reply {
    fn deny(self, denied: Denied) {
        match self {
            Self::Done(reply) => drop(reply.send(Err(denied))),
            Self::Grant(reply) => drop(reply.send(Err(denied))),
            Self::Attach(reply) => drop(reply.send(Err(denied))),
        }
    }
}

/// The right to use a running VM.
pub(crate) struct Grant {
    /// Its worker.
    pub(crate) worker: Arc<dyn Worker>,
    /// Dropped at the end of the use; a text says how the guest broke the rules.
    pub(crate) in_flight: oneshot::Sender<String>,
    /// Closed when the VM is gone.
    pub(crate) gone: watch::Receiver<()>,
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
        /// Memory that is counted for it.
        room: Room,
    },
    /// The guest answered.
    Ready {
        /// Its VM.
        vm: VmId,
        /// What it said.
        ready: Ready,
        /// What the worker says of itself, if it could say.
        worker: Option<WorkerStatus>,
    },
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
    /// What the worker said of itself.
    about: Option<WorkerStatus>,
    /// When its command began to run, if this daemon saw that.
    running_since: Option<Instant>,
    /// Its receivers learn the end of the VM.
    alive: watch::Sender<()>,
    _room: Option<Room>,
}

impl Live {
    /// A VM that is about to be launched.
    pub(crate) fn new(vm: VmId) -> Self {
        Self {
            vm,
            worker: None,
            talking: Arc::default(),
            session: None,
            ready: None,
            about: None,
            running_since: None,
            alive: watch::Sender::new(()),
            _room: None,
        }
    }

    /// A VM of an earlier daemon.
    pub(crate) fn adopted(
        vm: VmId,
        worker: Arc<dyn Worker>,
        about: Option<WorkerStatus>,
        room: Room,
    ) -> Self {
        Self { worker: Some(worker), about, _room: Some(room), ..Self::new(vm) }
    }

    /// Takes the worker that was launched.
    pub(crate) fn launched(&mut self, worker: Arc<dyn Worker>, room: Room) {
        self.worker = Some(worker);
        self._room = Some(room);
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
    pub(crate) timers: HashMap<Timer, Instant>,
    pub(crate) lease: Option<Lease>,
    pub(crate) counters: Counters,
    pub(crate) last_start: Option<Ready>,
    pub(crate) last_active_at: Option<Timestamp>,
    pub(crate) life_began_at: Option<Timestamp>,
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
            spec: Arc::clone(&spec),
            rules: state.rules.clone(),
            state: state.shown(),
            enabled: state.enabled,
            updated_at: record.updated_at,
            last_active_at: record.last_active_at,
            stopped: None,
            vm: None,
            users: Users::default(),
            lease: None,
            counters: Counters::default(),
            last_start: None,
            reachable: false,
            booting: false,
            evictable: false,
            deleted: false,
        });
        let mut driver = Driver {
            spec: Arc::clone(&spec),
            shared: Arc::clone(shared),
            live,
            tasks: JoinSet::new(),
            reports,
            status,
            timers: HashMap::new(),
            lease: None,
            counters: Counters { crashes: state.crashes, ..Counters::default() },
            last_start: None,
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
            let next_timer = self.timers.values().min().copied();
            tokio::select! {
                // What happened goes before what is wanted: nobody is woken in a VM that is known to be gone.
                biased;
                Some(report) = self.reported.recv() => self.hear(report).await,
                Some(request) = self.inbox.recv() => self.serve(request).await,
                () = at(next_timer) => self.elapse().await,
                Some(done) = self.tasks.join_next() => if let Err(e) = done && e.is_panic() {
                    tracing::error!(error = %e, "a task of the instance panicked");
                },
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        match request {
            Request::Shutdown { grace, save } => self.happen(Event::Shutdown { grace, save }).await,
            Request::Ask { ask, reply } => {
                self.ask(ask, reply).await;
            }
            Request::Update { update, reply } => self.update(&update, reply).await,
            Request::Lease { ttl, reason, reply } => {
                self.ask(Ask::Lease { ttl }, reply).await;
                if self.state.leased {
                    let expires_at = Timestamp::now().checked_add(ttl).unwrap_or(Timestamp::MAX);
                    self.lease = Some(Lease { reason, expires_at });
                    self.publish();
                }
            }
        }
    }

    async fn update(&mut self, update: &Update, reply: Reply) {
        // Here and not by whoever asks: another request may have made it larger meanwhile.
        if let Some(wanted) = update.disk.filter(|disk| *disk < self.spec.disk) {
            return reply.deny(Denied::DiskShrinks { has: self.spec.disk, wanted });
        }
        let spec = Arc::new(self.spec.updated(update));
        let rules = Box::new(self.shared.rules(&spec));
        // The record that is written for the request has the new one.
        let before = std::mem::replace(&mut self.spec, spec);
        if !self.ask(Ask::Follow { rules }, reply).await {
            self.spec = before;
        }
    }

    /// Whether it was not denied at once.
    async fn ask(&mut self, ask: Ask, reply: Reply) -> bool {
        let id = self.next_request;
        self.next_request += 1;
        self.waiting.insert(id, reply);
        match self.apply(Event::Request { id, ask }).await {
            Ok(()) => true,
            Err(denied) => {
                if let Some(reply) = self.waiting.remove(&id) {
                    reply.deny(denied);
                }
                false
            }
        }
    }

    /// Takes the timer that is due.
    async fn elapse(&mut self) {
        let now = Instant::now();
        let due = self.timers.iter().filter(|(_, at)| **at <= now).min_by_key(|(_, at)| **at);
        if let Some(timer) = due.map(|(timer, _)| *timer) {
            self.timers.remove(&timer);
            if timer == Timer::Restart {
                self.counters.restarts += 1;
            }
            self.happen(Event::Elapsed { timer, next: fresh_vm_id() }).await;
        }
    }

    async fn hear(&mut self, report: Report) {
        match report {
            Report::Event(mut event) => {
                self.before(&mut event);
                self.happen(event).await;
            }
            Report::Launched { vm, worker, room } => {
                self.launched(&vm, worker, room);
                self.happen(Event::Launched { vm }).await;
            }
            Report::Ready { vm, ready, worker } => {
                if let Some(live) = self.live.as_mut().filter(|live| live.vm == vm) {
                    let count = match ready.start {
                        StartKind::Cold => &mut self.counters.cold,
                        StartKind::Template => &mut self.counters.template,
                        StartKind::Restore => &mut self.counters.restore,
                    };
                    // A VM that was adopted is no start of this daemon's.
                    if self.state.booting() {
                        *count += 1;
                        self.last_start = Some(ready.clone());
                    }
                    live.ready = Some(ready);
                    live.about = worker;
                    self.publish();
                }
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
            for effect in &effects {
                if let Effect::Launch { fresh, .. } = effect {
                    record.last_active_at = Some(record.updated_at);
                    if *fresh {
                        record.life_began_at = Some(record.updated_at);
                    }
                }
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
        let waits =
            |state: &State| state.waiting.iter().any(|w| w.goal == Goal::Running && w.grant.is_some());
        // Who comes while the VM starts anyway wakes nobody.
        if waits(&state) && !waits(&self.state) && before != InstanceState::Starting {
            self.counters.wakes += 1;
        }
        self.counters.crashes = state.crashes;
        if !state.leased {
            self.lease = None;
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

    /// Counts what effects say, and stamps it with the time.
    fn note(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Pause { .. } | Effect::Hibernate { .. } => self.counters.rests += 1,
                Effect::RecordEnd(cause) => self.last_stop = Some(stamped(cause, Timestamp::now())),
                Effect::Launch { fresh, .. } => {
                    let now = Timestamp::now();
                    self.last_active_at = Some(now);
                    if *fresh {
                        self.life_began_at = Some(now);
                    }
                }
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
            crashes: state.crashes,
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
                confinement: live.and_then(|live| Some(live.about.as_ref()?.confinement.clone())),
                vmm_pid: live.and_then(|live| live.about.as_ref()?.vmm_pid),
            }
        });
        self.status.send_replace(Status {
            spec: Arc::clone(&self.spec),
            rules: self.state.rules.clone(),
            state: self.state.shown(),
            enabled: self.state.enabled,
            updated_at: self.updated_at,
            last_active_at: self.last_active_at,
            stopped,
            vm,
            users: self.state.users,
            lease: self.lease.clone(),
            counters: self.counters,
            last_start: self.last_start.clone(),
            reachable: self.state.is_reachable(),
            booting: self.state.booting(),
            evictable: self.state.is_idle() && self.state.rules.may_hibernate().is_ok(),
            deleted: self.state.phase == Phase::Deleted,
        });
    }

    pub(crate) fn answer(&mut self, id: RequestId, outcome: Result<(), Denied>, grant: Option<Use>) {
        // Made in any case: a token that nobody takes ends the use at once.
        let in_flight = grant.map(|kind| self.in_use(kind));
        match (self.waiting.remove(&id), outcome) {
            (None, _) => {}
            (Some(reply), Err(denied)) => reply.deny(denied),
            (Some(Reply::Done(reply)), Ok(())) => drop(reply.send(Ok(()))),
            (Some(Reply::Attach(reply)), Ok(())) => {
                drop(reply.send(in_flight.map(InUse::new).ok_or(Denied::Stopping)));
            }
            (Some(Reply::Grant(reply)), Ok(())) => {
                drop(reply.send(in_flight.and_then(|token| self.grant(token)).ok_or(Denied::Stopping)));
            }
        }
    }

    /// How long the command has run, if its start was seen here.
    pub(crate) fn ran(&self) -> Option<Duration> {
        self.live.as_ref()?.running_since.map(|since| since.elapsed())
    }

    /// The command of this VM runs; unless it did so before.
    pub(crate) fn began(&mut self, vm: &VmId) {
        if let Some(live) = self.live.as_mut().filter(|live| live.vm == *vm)
            && self.state.booting()
            && live.ready.as_ref().is_some_and(|ready| ready.start != StartKind::Restore)
        {
            live.running_since = Some(Instant::now());
        }
    }

    /// The right to use the VM, while there is one.
    fn grant(&self, in_flight: oneshot::Sender<String>) -> Option<Grant> {
        let live = self.live.as_ref()?;
        Some(Grant { worker: Arc::clone(live.worker.as_ref()?), in_flight, gone: live.alive.subscribe() })
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn stamped(cause: &StopCause, at: Timestamp) -> LastStop {
    LastStop { at, reason: cause.reason, exit_code: cause.exit_code, error: cause.error.clone() }
}
