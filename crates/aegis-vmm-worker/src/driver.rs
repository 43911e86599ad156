//! The one task that owns the VM.

use std::sync::Arc;
use std::time::Duration;

use aegis_link::LinkEnd;
use aegis_link::host::HostLink;
use aegis_link::rpc::CallError;
use aegis_proto::worker::{
    BootFailure, ExitReason, Exited, Phase, Ready, Restore, StartPhases, WorkerConfig,
};
use aegis_types::{Ram, StartKind, VmId};
use aegis_vmm::{Start, StartTimes, Vm, VmExit, Vmm};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Outside;
use crate::boot::{self, Attempt, Plan, Up, message_of, reap};
use crate::content;
use crate::guest::{Guest, GuestError, greet};
use crate::saved::Saved;
use crate::view::View;

/// After the guest's own grace: for the kernel to flush and to switch off.
const POWER_OFF: Duration = Duration::from_secs(5);
/// A guest that was restored right answers long before; booting instead must not wait for the boot's own deadline.
const RESTORE_LIMIT: Duration = Duration::from_secs(15);
const RECONNECT_ATTEMPTS: u8 = 3;
const RECONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// A restored guest was told the time when its CPUs began to run, and was some milliseconds late to read it. Whoever woke
/// it comes before that is put right.
const CLOCK_AFTER: Duration = Duration::from_millis(200);
/// Between attempts that fail at once. All attempts together stay below 10 s.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// What clients ask for.
pub(crate) enum Request {
    /// Halts the CPUs.
    Pause(Reply),
    /// Lets them go on and sets the clock.
    Resume(Reply),
    /// Saves the VM and ends it; answered when it is gone, or runs on.
    Hibernate(Reply),
    /// Ends the VM; answered when it is gone.
    Stop {
        /// Time for the guest's processes; zero kills at once.
        grace: Duration,
        /// Nobody waits for a stop that a signal asked for.
        reply: Option<Reply>,
    },
}

/// Takes the outcome; the error is for people.
pub(crate) type Reply = oneshot::Sender<Result<(), String>>;

/// A stop request.
struct Stop {
    grace: Duration,
    reply: Option<Reply>,
}

/// Why [`Driver::serve`] went round.
enum Event {
    Gone(VmExit),
    LinkEnded(LinkEnd),
    Request(Request),
    ClockDue,
}

pub(crate) struct Driver {
    pub(crate) config: WorkerConfig,
    pub(crate) vmm: Arc<dyn Vmm>,
    /// For every VM that is started here.
    pub(crate) outside: Outside,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) view: watch::Sender<View>,
}

/// A VM after its boot.
pub(crate) struct Live {
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) guest: Guest,
    pub(crate) paused: bool,
    /// The boot that its memory goes back to.
    pub(crate) boot_id: VmId,
    /// Generation of the guest wire.
    pub(crate) generation: u32,
    /// When its clock is to be set right.
    clock_due: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(
        config: WorkerConfig,
        vmm: Arc<dyn Vmm>,
        outside: Outside,
        requests: mpsc::Receiver<Request>,
        view: watch::Sender<View>,
    ) -> Self {
        Self { config, vmm, outside, requests, view }
    }

    /// From the boot to the end; the VMM has been reaped then.
    pub(crate) async fn run(mut self) -> Exited {
        let exited = match self.boot().await {
            Ok(live) => self.serve(live).await,
            Err(exited) => exited,
        };
        if let Some(net) = &self.outside.net {
            net.finish().await;
        }
        // A VM that was saved has not been stopped: whoever asks in the last moment must not take it for that.
        let phase = match exited.reason {
            ExitReason::Hibernated => Phase::Hibernating,
            _ => Phase::Stopping,
        };
        self.view.send_modify(|view| (view.phase, view.link, view.vmm_pid) = (phase, None, None));
        exited
    }

    /// Restores the VM if there is saved state, and boots it otherwise or if that fails.
    async fn boot(&mut self) -> Result<Live, Exited> {
        let mut cold = self.config.vm.clone();
        if cold.ram == Ram::Template {
            // What the guest would find there is not empty.
            cold.ram = Ram::Anonymous;
        }
        let boots = self.config.boot_attempts.max(1);
        let limit = Duration::from_millis(self.config.boot_timeout_ms);
        let mut fallback = None;
        let mut attempts = 0;
        if let Some(restore) = self.config.restore.clone() {
            attempts += 1;
            let start = Start::Restore { state: &restore.state };
            let plan = Plan { vm: &self.config.vm.clone(), start, limit: limit.min(RESTORE_LIMIT) };
            let attempted = match self.open_mounts(Some(&restore)).await {
                Ok(()) => self.attempt(plan).await?,
                Err(message) => Err((BootFailure { message, console: Vec::new() }, false)),
            };
            match attempted {
                Ok(up) => {
                    if let (Ram::File { path }, StartKind::Restore) = (&self.config.vm.ram, restore.kind) {
                        // The devices go on from it: it is of no more use.
                        Saved::beside(path).remove();
                    }
                    return Ok(self.ready(up, attempts, Some(&restore), None).await);
                }
                Err((failure, _)) => {
                    tracing::warn!("booting, because the VM was not restored: {}", failure.message);
                    fallback = Some(failure.message);
                }
            }
        }
        // Whatever was opened for the guest that was not restored is not this one's.
        if let Err(message) = self.open_mounts(None).await {
            tracing::error!("{message}");
            self.boot_failed(message.clone(), Vec::new());
            return Err(Exited { reason: ExitReason::BootFailed, message });
        }
        loop {
            attempts += 1;
            let plan = Plan { vm: &cold, start: Start::Boot, limit };
            let last = attempts == boots + u8::from(fallback.is_some());
            match self.attempt(plan).await? {
                Ok(up) => return Ok(self.ready(up, attempts, None, fallback).await),
                Err((failure, true)) if !last => {
                    tracing::warn!(attempts, "booting again: {}", failure.message);
                }
                Err((BootFailure { message, console }, _)) => {
                    tracing::error!(attempts, "the VM did not boot: {message}");
                    self.boot_failed(message.clone(), console);
                    return Err(Exited { reason: ExitReason::BootFailed, message });
                }
            }
        }
    }

    /// Gets the mounts ready for the guest that is to be started.
    async fn open_mounts(&self, restore: Option<&Restore>) -> Result<(), String> {
        let Some(mounts) = &self.outside.mounts else { return Ok(()) };
        // A template knows of none.
        let saved = restore.filter(|restore| restore.kind == StartKind::Restore);
        mounts.open(saved.and_then(|restore| restore.state.parent())).await
    }

    fn serve_mounts(&self, vm: &dyn Vm, link: &HostLink) {
        if let Some(mounts) = &self.outside.mounts {
            mounts.serve(link.clone(), vm.files());
        }
    }

    /// One attempt: the VM, or why not and whether trying again may help.
    async fn attempt(&mut self, plan: Plan<'_>) -> Result<Result<Up, (BootFailure, bool)>, Exited> {
        let (view, Outside { net, mounts }) = (&self.view, &self.outside);
        let restored = matches!(plan.start, Start::Restore { .. })
            && self.config.restore.as_ref().is_some_and(|restore| restore.kind == StartKind::Restore);
        let started = |vm: &dyn Vm| {
            view.send_modify(|view| view.vmm_pid = vm.pid());
            if let Some((net, link)) = net.as_ref().and_then(|net| Some((net, vm.ethernet()?))) {
                net.serve(link, restored);
            }
            match (vm.content(), mounts) {
                (Some(stream), Some(mounts)) => mounts.serve_content(stream),
                (Some(stream), None) => content::serve(stream, Vec::new()),
                (None, _) => {}
            }
        };
        let stop = next_stop(&mut self.requests, "the VM is still booting");
        match boot::attempt(self.vmm.as_ref(), &self.config, plan, started, stop).await {
            Attempt::Up(up) => Ok(Ok(up)),
            Attempt::Interrupted(stop) => {
                answer(stop.reply);
                self.boot_failed("it was stopped while it booted".to_owned(), Vec::new());
                Err(stopped("stopped while it booted"))
            }
            Attempt::Failed { failure, again } => {
                self.view.send_modify(|view| view.vmm_pid = None);
                Ok(Err((failure, again)))
            }
        }
    }

    fn boot_failed(&self, message: String, console: Vec<String>) {
        self.view.send_modify(|view| view.boot = Some(Err(BootFailure { message, console })));
    }

    async fn ready(
        &self,
        up: Up,
        attempts: u8,
        restored: Option<&Restore>,
        fallback: Option<String>,
    ) -> Live {
        let boot_id = restored.and_then(|restore| restore.boot_id.clone());
        let ready = Ready {
            harness_version: up.welcome.version,
            generation: up.welcome.generation,
            boot_ms: u64::try_from(up.took.as_millis()).unwrap_or(u64::MAX),
            attempts,
            start: restored.map_or(StartKind::Cold, |restore| restore.kind),
            fallback,
            boot_id: boot_id.clone(),
            phases: phases(&up.times, up.took),
        };
        self.serve_mounts(up.vm.as_ref(), &up.link);
        tracing::info!(boot_ms = ready.boot_ms, attempts, start = ?ready.start, "the VM is up");
        let mut live = Live {
            vm: up.vm,
            guest: Guest::default(),
            paused: false,
            boot_id: boot_id.unwrap_or_else(|| self.config.vm.vm_id.clone()),
            generation: ready.generation,
            clock_due: None,
        };
        live.guest.set_link(Some(up.link.clone()));
        if restored.is_none() {
            // The time in the greeting waited for the kernel to boot, and no process has seen another one.
            set_clock(&mut live.guest).await;
        } else {
            live.clock_due = Some(Instant::now() + CLOCK_AFTER);
        }
        self.view.send_modify(|view| {
            (view.phase, view.link, view.boot) = (Phase::Running, Some(up.link), Some(Ok(ready)));
        });
        live
    }

    fn linked(&self, live: &mut Live, link: HostLink) {
        self.serve_mounts(live.vm.as_ref(), &link);
        live.guest.set_link(Some(link.clone()));
        self.view.send_modify(|view| (view.phase, view.link) = (Phase::Running, Some(link)));
    }

    async fn serve(&mut self, mut live: Live) -> Exited {
        loop {
            let event = tokio::select! {
                exit = live.vm.exited() => Event::Gone(exit),
                end = link_end(live.guest.link()) => Event::LinkEnded(end),
                Some(request) = self.requests.recv() => Event::Request(request),
                () = sleep_until(live.clock_due.unwrap_or_else(Instant::now)), if live.clock_due.is_some() => {
                    Event::ClockDue
                }
            };
            let handled = match event {
                Event::Gone(exit) => Err(gone(exit)),
                Event::LinkEnded(end) => self.link_ended(&mut live, end).await,
                Event::Request(Request::Pause(reply)) => {
                    respond(reply, self.pause(&mut live).await);
                    Ok(())
                }
                Event::ClockDue => {
                    live.clock_due = None;
                    // One whose CPUs are halted gets the time when they go on.
                    if !live.paused {
                        set_clock(&mut live.guest).await;
                    }
                    Ok(())
                }
                Event::Request(Request::Resume(reply)) => self.resume(&mut live, reply).await,
                Event::Request(Request::Hibernate(reply)) => self.hibernate(&mut live, reply).await,
                Event::Request(Request::Stop { grace, reply }) => {
                    Err(self.stop(&mut live, Stop { grace, reply }).await)
                }
            };
            if let Err(exited) = handled {
                return exited;
            }
        }
    }

    async fn pause(&mut self, live: &mut Live) -> Result<(), String> {
        // The order matters: a stream must not be opened to CPUs that are about to halt.
        self.view.send_modify(|view| view.phase = Phase::Paused);
        let paused = live.vm.pause().await.map_err(|e| message_of(&e));
        match &paused {
            Ok(()) => {
                live.paused = true;
                self.set_net_paused(true);
            }
            Err(e) => {
                tracing::warn!("cannot pause: {e}");
                if !live.paused {
                    self.view.send_modify(|view| view.phase = Phase::Running);
                }
            }
        }
        paused
    }

    /// Tells the network whether the CPUs are halted.
    pub(crate) fn set_net_paused(&self, paused: bool) {
        if let Some(net) = &self.outside.net {
            net.set_paused(paused);
        }
    }

    async fn resume(&mut self, live: &mut Live, reply: Reply) -> Result<(), Exited> {
        if let Err(e) = live.vm.resume().await {
            let message = message_of(&e);
            tracing::warn!("cannot resume: {message}");
            respond(reply, Err(message));
            return Ok(());
        }
        self.set_net_paused(false);
        if std::mem::take(&mut live.paused) {
            // The link may have been lost meanwhile; halted CPUs could not restore it.
            let outcome = match live.guest.link() {
                Some(_) => Ok(()),
                None => self.reconnect(live).await,
            };
            if let Err(exited) = outcome {
                respond(reply, Err(exited.message.clone()));
                return Err(exited);
            }
            set_clock(&mut live.guest).await;
            self.view.send_modify(|view| view.phase = Phase::Running);
        }
        respond(reply, Ok(()));
        Ok(())
    }

    async fn link_ended(&mut self, live: &mut Live, end: LinkEnd) -> Result<(), Exited> {
        live.guest.set_link(None);
        self.view.send_modify(|view| view.link = None);
        match end {
            LinkEnd::Violation(what) => {
                let message = format!("the guest broke the rules of the link: {what}");
                tracing::error!("{message}");
                reap(live.vm.as_ref()).await;
                Err(Exited { reason: ExitReason::LinkViolation, message })
            }
            LinkEnd::Closed if live.paused => Ok(()),
            LinkEnd::Closed => self.reconnect(live).await,
        }
    }

    /// Greets a guest whose link is gone. The VM is ended if that does not work.
    pub(crate) async fn reconnect(&mut self, live: &mut Live) -> Result<(), Exited> {
        for attempt in 1..=RECONNECT_ATTEMPTS {
            let greeted = tokio::select! {
                // A guest that switches off closes the link first.
                exit = live.vm.exited() => return Err(gone(exit)),
                stop = next_stop(&mut self.requests, "the guest link is being restored") => {
                    // Without a link the guest cannot be asked.
                    reap(live.vm.as_ref()).await;
                    answer(stop.reply);
                    return Err(stopped("stopped by force, because the guest link was lost"));
                }
                greeted = timeout(RECONNECT_DEADLINE, greet(live.vm.as_ref(), &self.config)) => greeted,
            };
            match greeted {
                Ok(Ok((link, _))) => {
                    tracing::warn!(attempt, "the guest link was gone and is back");
                    self.linked(live, link);
                    return Ok(());
                }
                Ok(Err(e)) => {
                    tracing::debug!(attempt, "the guest link is not back: {}", message_of(&e));
                    tokio::select! {
                        exit = live.vm.exited() => return Err(gone(exit)),
                        () = sleep(RECONNECT_PAUSE) => {}
                    }
                }
                Err(_) => tracing::debug!(attempt, "the guest link is not back: no answer"),
            }
        }
        reap(live.vm.as_ref()).await;
        let message = "the guest link was lost and the harness did not answer again".to_owned();
        tracing::error!("{message}");
        Err(Exited { reason: ExitReason::LinkViolation, message })
    }

    async fn stop(&mut self, live: &mut Live, stop: Stop) -> Exited {
        self.view.send_modify(|view| view.phase = Phase::Stopping);
        let mut replies = vec![stop.reply];
        let message = if stop.grace.is_zero() {
            "stopped at once"
        } else {
            let orderly = timeout(stop.grace + POWER_OFF, stop_in_order(live, stop.grace));
            tokio::select! {
                done = orderly => match done {
                    Ok(true) => "stopped in order",
                    Ok(false) => "stopped by force, because the guest could not be asked",
                    Err(_) => "stopped by force, because the guest did not end in time",
                },
                () = until_forced(&mut self.requests, &mut replies) => "stopped by force",
            }
        };
        reap(live.vm.as_ref()).await;
        replies.into_iter().for_each(answer);
        stopped(message)
    }
}

fn phases(times: &StartTimes, took: Duration) -> StartPhases {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let guest = took.saturating_sub(times.vmm).saturating_sub(times.load);
    StartPhases { vmm_us: micros(times.vmm), load_us: micros(times.load), guest_us: micros(guest) }
}

/// A guest with a wrong clock is better than none.
async fn set_clock(guest: &mut Guest) {
    if let Err(e) = guest.set_clock().await {
        tracing::warn!("the guest's clock is behind: {}", message_of(&e));
    }
}

/// Asks the guest to switch off and waits until it did; false if it could not be asked.
async fn stop_in_order(live: &mut Live, grace: Duration) -> bool {
    if live.paused && live.vm.resume().await.is_err() {
        return false;
    }
    match live.guest.shut_down(grace).await {
        // It may be gone before its answer was read.
        Ok(()) | Err(GuestError::Call(CallError::Closed(_))) => {
            live.vm.exited().await;
            true
        }
        Err(e) => {
            tracing::warn!("the guest could not be asked to end: {}", message_of(&e));
            false
        }
    }
}

/// Collects requests while the VM stops; completes when one wants it gone at once.
async fn until_forced(requests: &mut mpsc::Receiver<Request>, replies: &mut Vec<Option<Reply>>) {
    loop {
        let stop = next_stop(requests, "the VM is stopping").await;
        let forced = stop.grace.is_zero();
        replies.push(stop.reply);
        if forced {
            return;
        }
    }
}

/// The next stop request; everything else is refused with `why`.
async fn next_stop(requests: &mut mpsc::Receiver<Request>, why: &str) -> Stop {
    loop {
        match requests.recv().await {
            Some(Request::Stop { grace, reply }) => return Stop { grace, reply },
            Some(Request::Pause(reply) | Request::Resume(reply) | Request::Hibernate(reply)) => {
                respond(reply, Err(why.to_owned()));
            }
            None => std::future::pending().await,
        }
    }
}

async fn link_end(link: Option<&HostLink>) -> LinkEnd {
    match link {
        Some(link) => link.ended().await,
        None => std::future::pending().await,
    }
}

pub(crate) fn respond(reply: Reply, outcome: Result<(), String>) {
    // A client that went away does not need it.
    let _ = reply.send(outcome);
}

pub(crate) fn answer(reply: Option<Reply>) {
    if let Some(reply) = reply {
        respond(reply, Ok(()));
    }
}

pub(crate) fn gone(exit: VmExit) -> Exited {
    match exit {
        VmExit::GuestShutdown => {
            Exited { reason: ExitReason::GuestShutdown, message: "the guest switched itself off".to_owned() }
        }
        VmExit::Killed => Exited { reason: ExitReason::VmmDied, message: "the VMM was killed".to_owned() },
        VmExit::Died(why) => Exited { reason: ExitReason::VmmDied, message: format!("the VMM ended: {why}") },
    }
}

pub(crate) fn stopped(message: &str) -> Exited {
    Exited { reason: ExitReason::Stopped, message: message.to_owned() }
}
