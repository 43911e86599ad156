//! How effects are performed. A subtask ends with a report to the driver.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aegis_proto::worker::Exited;
use aegis_types::VmId;
use jiff::Timestamp;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use crate::budget::Room;
use crate::driver::{Driver, Live, Report};
use crate::error::Denied;
use crate::manager::Shared;
use crate::ports::{Worker, WorkerError};
use crate::record::InstanceSpec;
use crate::session::{Origin, Session};
use crate::step::{Effect, Event, Use};
use crate::text;

/// Time for the VMM to halt its CPUs or to let them go on.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to save a VM; the worker gives up before.
const HIBERNATE_TIMEOUT: Duration = Duration::from_secs(90);
/// Time on top of the grace for a stop to be carried out: file systems are synced.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// Time for a stopped worker to be gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Stops by force before saying that it does not help.
const KILLS: u32 = 2;
/// Time for the last words of a guest whose worker is gone.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

impl Driver {
    pub(crate) async fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                // Done before the step was committed.
                Effect::Record => {}
                Effect::RecordEnd(_) => self.record_outcome().await,
                Effect::Log(message) => self.shared.ports.logs.system(&self.spec.id, message).await,
                Effect::Answer { id, outcome, grant } => self.answer(id, outcome, grant),
                Effect::Launch { vm, .. } => {
                    self.live = Some(Live::new(vm));
                    self.start_session(Origin::Launch(Arc::clone(&self.shared.ports.launcher)));
                }
                Effect::Attach { .. } => self.attach(),
                Effect::Pause { vm } => self.with_worker(|worker, reports| async move {
                    let outcome = in_time(PAUSE_TIMEOUT, worker.pause()).await;
                    report(&reports, Event::PauseDone { vm, outcome }).await;
                }),
                Effect::Resume { vm } => self.with_worker(|worker, reports| async move {
                    let outcome = in_time(PAUSE_TIMEOUT, worker.resume()).await;
                    report(&reports, Event::ResumeDone { vm, outcome }).await;
                }),
                Effect::Hibernate { vm } => self.with_worker(|worker, reports| async move {
                    // Success is the end of the worker, which is reported by whoever watches it.
                    if let Err(message) = in_time(HIBERNATE_TIMEOUT, worker.hibernate()).await {
                        report(&reports, Event::HibernateFailed { vm, message }).await;
                    }
                }),
                // In place: what is saved must be gone before anything else happens to the disk.
                Effect::Discard => self.shared.ports.launcher.discard_saved(&self.spec.id).await,
                Effect::Arm { timer, after } => {
                    // A time beyond all clocks is never.
                    if let Some(at) = Instant::now().checked_add(after) {
                        self.timers.insert(timer, at);
                    }
                }
                Effect::Disarm { timer } => drop(self.timers.remove(&timer)),
                Effect::Stop { vm, grace } => {
                    self.with_worker(|worker, reports| stop(worker, reports, vm, grace));
                }
                Effect::CleanUp { vm } => self.clean_up(vm),
                Effect::Remove => self.remove(),
            }
        }
    }

    /// Prepares for an event that the driver has a part in.
    pub(crate) fn before(&mut self, event: &mut Event) {
        match event {
            Event::ProcessExited { ran, .. } => {
                self.last_active_at = Some(Timestamp::now());
                // One whose start was not seen here has run for long enough.
                *ran = Some(self.ran().unwrap_or(Duration::MAX));
            }
            Event::Activity { .. } | Event::UseEnded(_) => self.last_active_at = Some(Timestamp::now()),
            Event::Booted { vm } => self.began(vm),
            // A VM that was adopted while it was paused: now its guest can be asked how far it is.
            Event::ResumeDone { vm, outcome: Ok(()) }
                if self.live.as_ref().is_some_and(|live| live.vm == *vm && live.session.is_none()) =>
            {
                self.attach();
            }
            _ => {}
        }
    }

    /// Takes the worker of the VM that is being launched.
    pub(crate) fn launched(&mut self, vm: &VmId, worker: Arc<dyn Worker>, room: Room) {
        if let Some(live) = self.live.as_mut().filter(|live| live.vm == *vm) {
            live.launched(worker, room);
            self.watch_worker();
        }
    }

    /// Watches a worker that was there before the driver.
    pub(crate) fn watch_adopted(&mut self) {
        if self.live.is_some() {
            self.watch_worker();
        }
    }

    /// A use that was counted: dropping the token ends it, sending on it tells that the guest broke the rules.
    pub(crate) fn in_use(&mut self, kind: Use) -> oneshot::Sender<String> {
        let (in_flight, ended) = oneshot::channel();
        self.last_active_at = Some(Timestamp::now());
        self.publish();
        let (vm, reports) = (self.live.as_ref().map(|live| live.vm.clone()), self.reports.clone());
        self.spawn(async move {
            if let (Ok(message), Some(vm)) = (ended.await, vm) {
                report(&reports, Event::GuestFault { vm, message }).await;
            }
            report(&reports, Event::UseEnded(kind)).await;
        });
        in_flight
    }

    fn attach(&mut self) {
        if let Some(worker) = self.live.as_ref().and_then(|live| live.worker.clone()) {
            self.start_session(Origin::Adopted(worker));
        }
    }

    fn start_session(&mut self, origin: Origin) {
        let Some(live) = &self.live else { return };
        // There is one session for each VM, so the lock is free.
        let Ok(talking) = Arc::clone(&live.talking).try_lock_owned() else { return };
        let session = Session {
            spec: Arc::clone(&self.spec),
            vm: live.vm.clone(),
            logs: Arc::clone(&self.shared.ports.logs),
            reports: self.reports.clone(),
            status: self.status.subscribe(),
            shared: Arc::clone(&self.shared),
        };
        let task = self.spawn(async move {
            session.run(origin).await;
            // Its last report is on its way: a worker that is gone may be reported now.
            drop(talking);
        });
        if let Some(live) = &mut self.live {
            live.session = Some(task);
        }
    }

    fn watch_worker(&mut self) {
        let Some(live) = &self.live else { return };
        let (vm, talking) = (live.vm.clone(), Arc::clone(&live.talking));
        self.with_worker(|worker, reports| watch(worker, reports, vm, talking));
    }

    fn clean_up(&mut self, vm: VmId) {
        if let Some(session) = self.live.as_ref().and_then(|live| live.session.as_ref()) {
            session.abort();
        }
        let (shared, id, reports) = (Arc::clone(&self.shared), self.spec.id.clone(), self.reports.clone());
        self.spawn(async move {
            shared.ports.launcher.clean_up(&id).await;
            report(&reports, Event::Cleaned { vm }).await;
        });
    }

    fn remove(&mut self) {
        let (shared, spec, reports) =
            (Arc::clone(&self.shared), Arc::clone(&self.spec), self.reports.clone());
        self.spawn(async move {
            let outcome = remove_all(&shared, &spec).await;
            report(&reports, Event::Removed(outcome)).await;
        });
    }

    fn with_worker<F, Fut>(&mut self, work: F)
    where
        F: FnOnce(Arc<dyn Worker>, mpsc::Sender<Report>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        match self.live.as_ref().and_then(|live| live.worker.clone()) {
            Some(worker) => {
                let work = work(worker, self.reports.clone());
                self.spawn(work);
            }
            None => tracing::error!("there is no worker to do this"),
        }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.tasks.spawn(task.in_current_span())
    }
}

async fn watch(worker: Arc<dyn Worker>, reports: mpsc::Sender<Report>, vm: VmId, talking: Arc<Mutex<()>>) {
    let Exited { reason, message } = worker.exited().await;
    // What the guest said before, its output and how its command ended, may still be on its way to us. A VM that
    // did not come up is explained better by the session than by the end of its worker.
    if timeout(DRAIN_TIMEOUT, talking.lock()).await.is_err() {
        tracing::warn!("the output of a VM that is gone could not be stored in time");
    }
    let exited = Exited { reason, message: text::bounded(&message) };
    report(&reports, Event::Gone { vm, exited }).await;
}

/// The end itself is reported by [`watch`].
async fn stop(worker: Arc<dyn Worker>, reports: mpsc::Sender<Report>, vm: VmId, grace: Duration) {
    let mut problem = String::new();
    for grace in std::iter::once(grace).chain(std::iter::repeat_n(Duration::ZERO, KILLS as usize)) {
        let stopped = in_time(grace + STOP_MARGIN, worker.stop(grace)).await;
        // One that ended by itself meanwhile has stopped as well, whatever it answered.
        if timeout(EXIT_TIMEOUT, worker.exited()).await.is_ok() {
            return;
        }
        if let Err(e) = stopped {
            tracing::warn!(error = %e, ?grace, "a stop was not carried out");
            problem = e;
        }
    }
    tracing::error!(error = %problem, "the worker does not end");
    let message = format!("it does not end: {problem}");
    report(&reports, Event::StopStuck { vm, message }).await;
}

async fn remove_all(shared: &Shared, spec: &InstanceSpec) -> Result<(), Denied> {
    // The record goes last: while it is there, a removal that was cut short can be repeated.
    shared.ports.launcher.remove(spec).await.map_err(|e| Denied::Files(text::chain(&e)))?;
    shared.ports.registry.delete(&spec.id).await.map_err(|e| Denied::Registry(text::chain(&e)))
}

async fn in_time(limit: Duration, call: impl Future<Output = Result<(), WorkerError>>) -> Result<(), String> {
    match timeout(limit, call).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(text::chain(&e)),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

pub(crate) async fn send(reports: &mpsc::Sender<Report>, report: Report) {
    // A driver that is gone has nothing left to do.
    let _ = reports.send(report).await;
}

pub(crate) async fn report(reports: &mpsc::Sender<Report>, event: Event) {
    send(reports, Report::Event(event)).await;
}
