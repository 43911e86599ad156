//! The one task that talks to a guest on behalf of its instance: from the launch to the end of the command.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aegis_link::rpc::{CallError, Client};
use aegis_proto::control::{self, Process, Run, StartFailure, Started, Streams};
use aegis_proto::service::Service;
use aegis_proto::worker::{BootFailure, Ready};
use aegis_types::{StartKind, VmId};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::budget::Room;
use crate::driver::Report;
use crate::effects::{report, send};
use crate::manager::Shared;
use crate::ports::{Injection, LaunchError, Launched, Launcher, LogSink, SystemMessage, Worker};
use crate::record::InstanceSpec;
use crate::status::Status;
use crate::step::{BootProblem, Event};
use crate::{activity, logs, text};

/// Time for the guest to open a stream.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one call to the guest.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the worker to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// A VM that goes on was woken by somebody who waits: its output, which waits in the guest, comes after them.
const FIRST_COME: Duration = Duration::from_millis(100);
/// Time for the reason of a failed boot to arrive after the worker ended.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no VM when nobody wants it any more.
const GIVEN_UP: &str = "the start was given up";

/// See the module.
pub(crate) struct Session {
    pub(crate) spec: Arc<InstanceSpec>,
    pub(crate) vm: VmId,
    pub(crate) logs: Arc<dyn LogSink>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) shared: Arc<Shared>,
}

/// Where a session starts.
pub(crate) enum Origin {
    /// With a new worker.
    Launch(Arc<dyn Launcher>),
    /// With a worker that an earlier daemon launched.
    Adopted(Arc<dyn Worker>),
}

/// Why the command does not run.
enum Obstacle {
    /// The guest refused to start it.
    Refused(StartFailure),
    /// What it needs could not be had.
    Missing(BootProblem),
    /// The guest could not be talked to.
    Unreachable(String),
    /// The guest said something that makes no sense.
    Nonsense(String),
}

impl Session {
    /// Ends when the command ended or the VM is of no use any more; reports which.
    pub(crate) async fn run(self, origin: Origin) {
        let end = match self.boot(origin).await {
            Ok((worker, boot)) => tokio::select! {
                end = self.follow(&boot, worker.as_ref()) => end,
                () = activity::follow(&self, worker.as_ref()) => None,
            },
            Err(event) => Some(event),
        };
        if let Some(event) = end {
            report(&self.reports, event).await;
        }
    }

    async fn follow(&self, boot: &VmId, worker: &dyn Worker) -> Option<Event> {
        if *boot != self.vm {
            sleep(FIRST_COME).await;
        }
        logs::follow(self, boot, worker).await
    }

    /// Brings the command to run. Also returns the boot from which its output is counted.
    async fn boot(&self, origin: Origin) -> Result<(Arc<dyn Worker>, VmId), Event> {
        let (worker, adopted, injection) = match origin {
            Origin::Launch(launcher) => {
                self.provide(launcher.as_ref()).await.map_err(|problem| self.failed(problem))?;
                // Before there is a VM: without what its command needs there is no use in a VM. The command of a saved one runs already.
                let injection = match launcher.has_saved(&self.spec.id).await {
                    true => None,
                    false => Some(self.inject().await.map_err(|problem| self.failed(problem))?),
                };
                (self.launch(launcher.as_ref()).await?, false, injection)
            }
            Origin::Adopted(worker) => (worker, true, None),
        };
        let ready = wait_ready(worker.as_ref()).await.map_err(|failure| self.failed(problem_of(failure)))?;
        if ready.attempts > 1 && !adopted {
            let line = format!("the VM came up only at attempt {}", ready.attempts);
            self.logs.system(&self.spec.id, SystemMessage::Error(line)).await;
        }
        if let Some(why) = &ready.fallback {
            let line =
                format!("the saved state could not be used: {}; booted from the disk", text::bounded(why));
            self.logs.system(&self.spec.id, SystemMessage::Error(line)).await;
        }
        let restored = ready.start == StartKind::Restore;
        let boot = ready.boot_id.clone().unwrap_or_else(|| self.vm.clone());
        let status = timeout(STATUS_TIMEOUT, worker.status()).await;
        let about = status.ok().and_then(Result::ok);
        send(&self.reports, Report::Ready { vm: self.vm.clone(), ready, worker: about }).await;
        // Only a VM whose command runs is saved, so it need not be asked: somebody waits for it.
        if adopted || !restored {
            self.start_command(worker.as_ref(), adopted, injection)
                .await
                .map_err(|obstacle| self.explain(obstacle, adopted))?;
        }
        report(&self.reports, Event::Booted { vm: self.vm.clone() }).await;
        Ok((worker, boot))
    }

    async fn launch(&self, launcher: &dyn Launcher) -> Result<Arc<dyn Worker>, Event> {
        let room = self.make_room().await.map_err(|message| {
            let hint = "hint: stop or hibernate other instances, or raise `ram_budget_mb` in config.toml";
            self.failed(BootProblem { message, details: vec![hint.to_owned()], no_memory: true })
        })?;
        let Launched { worker, notes } =
            launcher.launch(&self.spec, &self.vm).await.map_err(|error| self.failed(unavailable(error)))?;
        for note in notes {
            self.logs.system(&self.spec.id, SystemMessage::Error(text::bounded(&note))).await;
        }
        send(&self.reports, Report::Launched { vm: self.vm.clone(), worker: Arc::clone(&worker), room })
            .await;
        Ok(worker)
    }

    /// Waits for memory, unless the boot is given up meanwhile.
    async fn make_room(&self) -> Result<Room, String> {
        let mut status = self.status.clone();
        tokio::select! {
            room = self.shared.make_room(&self.spec.id, self.spec.memory) => {
                room.map_err(|why| format!("there is no memory for the VM: {why}"))
            }
            _ = status.wait_for(|status| !status.booting) => Err(GIVEN_UP.to_owned()),
        }
    }

    /// Waits for what a launch needs, which may be downloaded for minutes, unless the boot is given up meanwhile.
    async fn provide(&self, launcher: &dyn Launcher) -> Result<(), BootProblem> {
        let mut status = self.status.clone();
        tokio::select! {
            provided = launcher.provide(&self.spec) => provided.map_err(unavailable),
            _ = status.wait_for(|status| !status.booting) => Err(BootProblem {
                message: GIVEN_UP.to_owned(),
                details: Vec::new(),
                no_memory: false,
            }),
        }
    }

    async fn inject(&self) -> Result<Injection, BootProblem> {
        self.shared.ports.injector.inject(&self.spec, &self.vm).await.map_err(unavailable)
    }

    async fn start_command(
        &self,
        worker: &dyn Worker,
        adopted: bool,
        injection: Option<Injection>,
    ) -> Result<(), Obstacle> {
        let opened = timeout(OPEN_TIMEOUT, worker.open(Service::Control)).await;
        let stream = opened
            .map_err(|_| Obstacle::Unreachable("it does not open its control stream".to_owned()))?
            .map_err(|e| Obstacle::Unreachable(text::chain(&e)))?;
        // The guest has nothing to tell that it was not asked for.
        let (client, _) = Client::new(stream);
        if adopted {
            let status: control::Status = call(&client, control::STATUS, &()).await?;
            if status.primary_pid.is_some() || status.primary_exit.is_some() {
                return Ok(());
            }
        }
        let mut injection = match injection {
            Some(injection) => injection,
            None => self.inject().await.map_err(Obstacle::Missing)?,
        };
        for note in &injection.notes {
            self.logs.system(&self.spec.id, SystemMessage::Error(text::bounded(note))).await;
        }
        let InstanceSpec { tty, stdin, policy, .. } = self.spec.as_ref();
        let secret_files = std::mem::take(&mut injection.secret_files);
        let attach_first = policy.ephemeral && (*tty || *stdin);
        let streams = Streams { stdin: *stdin, tty: *tty, attach_first };
        let needs_streams = injection.user.is_some() || !streams.is_default();
        if needs_streams || !secret_files.is_empty() {
            let status: control::Status = call(&client, control::STATUS, &()).await?;
            let too_old = |what: &str| {
                let version = text::bounded(&status.version);
                Err(Obstacle::Unreachable(format!("its harness ({version}) is too old for {what}")))
            };
            if !secret_files.is_empty() && !status.secret_files {
                return too_old("files of secrets");
            }
            if needs_streams && !status.streams {
                return too_old("users and terminals");
            }
        }
        let process = Process {
            command: std::mem::take(&mut injection.command),
            env: std::mem::take(&mut injection.env),
            workdir: injection.workdir.take(),
            user: injection.user.take(),
        };
        let mut run = Run { process, secret_files, streams };
        let started = call::<Started>(&client, control::RUN, &run).await;
        injection.env = std::mem::take(&mut run.process.env);
        started.map(|_| ())
    }

    fn explain(&self, obstacle: Obstacle, adopted: bool) -> Event {
        let vm = self.vm.clone();
        match obstacle {
            Obstacle::Refused(failure) => Event::StartFailed { vm, failure },
            Obstacle::Missing(problem) => self.failed(problem),
            Obstacle::Nonsense(message) => Event::GuestFault { vm, message },
            // A command that may have been running for days has not failed to boot.
            Obstacle::Unreachable(message) if adopted => Event::GuestFault { vm, message },
            Obstacle::Unreachable(message) => self.failed(BootProblem {
                message: format!("the guest did not start the command: {message}"),
                details: Vec::new(),
                no_memory: false,
            }),
        }
    }

    fn failed(&self, failure: BootProblem) -> Event {
        Event::BootFailed { vm: self.vm.clone(), failure }
    }
}

/// A worker that ends has failed to boot, also if it could not say so.
async fn wait_ready(worker: &dyn Worker) -> Result<Ready, BootFailure> {
    let mut ready = pin!(worker.wait_ready());
    tokio::select! {
        biased;
        result = &mut ready => result,
        exited = worker.exited() => match timeout(REASON_TIMEOUT, ready).await {
            Ok(result) => result,
            Err(_) => Err(BootFailure { message: exited.message, console: Vec::new() }),
        },
    }
}

fn unavailable(LaunchError { message, hint }: LaunchError) -> BootProblem {
    let details = hint.into_iter().map(|hint| format!("hint: {}", text::bounded(&hint))).collect();
    BootProblem { message: text::bounded(&message), details, no_memory: false }
}

fn problem_of(failure: BootFailure) -> BootProblem {
    let details = failure.console.iter().map(|line| format!("console: {}", text::bounded(line))).collect();
    BootProblem { message: text::bounded(&failure.message), details, no_memory: false }
}

async fn call<R: serde::de::DeserializeOwned>(
    client: &Client,
    method: &str,
    params: &impl serde::Serialize,
) -> Result<R, Obstacle> {
    match timeout(CALL_TIMEOUT, client.call(method, params)).await {
        Ok(Ok(result)) => Ok(result),
        Err(_) => Err(Obstacle::Unreachable(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
        Ok(Err(CallError::Rpc(e))) => {
            match e.data.and_then(|data| serde_json::from_value::<StartFailure>(data).ok()) {
                Some(StartFailure { kind, message }) => {
                    Err(Obstacle::Refused(StartFailure { kind, message: text::bounded(&message) }))
                }
                None => Err(Obstacle::Unreachable(text::bounded(&e.message))),
            }
        }
        Ok(Err(e @ (CallError::BadResult(_) | CallError::Violation(_)))) => {
            Err(Obstacle::Nonsense(text::chain(&e)))
        }
        Ok(Err(e @ (CallError::Closed(_) | CallError::TooLarge(_)))) => {
            Err(Obstacle::Unreachable(text::chain(&e)))
        }
    }
}
