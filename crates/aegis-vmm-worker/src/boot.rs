//! One attempt to bring a VM up, and the words for its failure.

use std::error::Error;
use std::time::Duration;

use aegis_link::host::HostLink;
use aegis_proto::hello::Welcome;
use aegis_proto::worker::{BootFailure, WorkerConfig};
use aegis_types::{Ram, VmSpec};
use aegis_vmm::{Start, StartTimes, Vm, VmExit, Vmm, VmmError};
use tokio::time::{Instant, timeout_at};

use crate::guest::{self, GreetError};
use crate::memory;
use crate::saved::Saved;

/// A VM whose harness answered.
pub(crate) struct Up {
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) link: HostLink,
    pub(crate) welcome: Welcome,
    pub(crate) times: StartTimes,
    pub(crate) took: Duration,
}

/// What to start, and from what.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) vm: &'a VmSpec,
    pub(crate) start: Start<'a>,
    /// From the start of the VMM to the guest's answer.
    pub(crate) limit: Duration,
}

/// How an attempt ended.
pub(crate) enum Attempt<T> {
    Up(Up),
    Failed {
        failure: BootFailure,
        /// The next attempt may end differently.
        again: bool,
    },
    /// The caller's own event came first.
    Interrupted(T),
}

/// Starts the VMM and greets the guest. The VMM is reaped unless the attempt succeeds. `started` learns of the VM
/// before that runs; `interrupt` ends the attempt.
pub(crate) async fn attempt<T>(
    vmm: &dyn Vmm,
    config: &WorkerConfig,
    plan: Plan<'_>,
    started: impl FnOnce(&dyn Vm),
    interrupt: impl Future<Output = T>,
) -> Attempt<T> {
    let Plan { vm: spec, start: from, limit } = plan;
    if vmm.capabilities().save
        && let Err(e) = prepare_memory(spec, from)
    {
        return failed(message_of(&e), Vec::new(), false);
    }
    let start = Instant::now();
    let deadline = start + limit;
    // Not interrupted: the VMM could not be reaped then, and it starts or fails within moments.
    let vm = match timeout_at(deadline, vmm.boot(spec, from)).await {
        Ok(Ok(vm)) => vm,
        Ok(Err(e)) => return failed(message_of(&e), Vec::new(), may_pass(&e)),
        Err(_) => {
            return failed(format!("the VMM did not start within {}", seconds(limit)), Vec::new(), true);
        }
    };
    started(vm.as_ref());
    let up = async {
        // A restored guest finds its host there. It is greeted when its CPUs begin to run: what it is told about the time
        // would be old otherwise.
        let carrier = vm.connect().await;
        let times = vm.started().await?;
        let (link, welcome) = guest::greet_on(carrier?, config).await?;
        Ok::<_, GreetError>((times, link, welcome))
    };
    let outcome = tokio::select! {
        greeted = timeout_at(deadline, up) => Ok(greeted),
        exit = vm.exited() => Err(Ok(exit)),
        event = interrupt => Err(Err(event)),
    };
    let message = match outcome {
        Ok(Ok(Ok((times, link, welcome)))) => {
            return Attempt::Up(Up { vm, link, welcome, times, took: start.elapsed() });
        }
        Err(Err(event)) => {
            reap(vm.as_ref()).await;
            return Attempt::Interrupted(event);
        }
        Err(Ok(exit)) => end_message(exit),
        // A VMM that is ending closes the link a moment before: then its own end says more.
        Ok(Ok(Err(e))) => match timeout_at(deadline.min(Instant::now() + ENDING), vm.exited()).await {
            Ok(exit) => end_message(exit),
            Err(_) => greet_message(&e),
        },
        Ok(Err(_)) if from != Start::Boot => {
            format!("the restored guest did not answer within {}", seconds(limit))
        }
        Ok(Err(_)) if vm.console_tail().is_empty() => {
            format!("the guest did not answer within {} and its console is empty", seconds(limit))
        }
        Ok(Err(_)) => {
            format!("the kernel started but the harness did not answer within {}", seconds(limit))
        }
    };
    reap(vm.as_ref()).await;
    // Read after the end, so that the last words are in it.
    failed(message, vm.console_tail(), true)
}

fn prepare_memory(vm: &VmSpec, start: Start<'_>) -> Result<(), VmmError> {
    if let Ram::File { path } = &vm.ram {
        Saved::beside(path).use_up().map_err(|source| VmmError::Io {
            context: format!("cannot use up the memory that was saved in `{}`", path.display()),
            source,
        })?;
    }
    match start {
        Start::Boot => memory::fresh(vm),
        Start::Restore { .. } => memory::kept(vm),
    }
}

/// Time between the end of the link and the end of the VMM when both have one cause.
const ENDING: Duration = Duration::from_secs(2);

pub(crate) async fn reap(vm: &dyn Vm) {
    vm.kill();
    vm.exited().await;
}

fn failed<T>(message: String, console: Vec<String>, again: bool) -> Attempt<T> {
    Attempt::Failed { failure: BootFailure { message, console }, again }
}

/// Whether trying again is worth it: a missing file stays missing, an overloaded host may recover.
fn may_pass(error: &VmmError) -> bool {
    match error {
        VmmError::Spawn { .. } | VmmError::Io { .. } | VmmError::Unsupported { .. } => false,
        VmmError::Ended(_) | VmmError::Refused { .. } | VmmError::Timeout { .. } => true,
    }
}

fn end_message(exit: VmExit) -> String {
    match exit {
        VmExit::GuestShutdown => "the guest kernel ended before the harness answered".to_owned(),
        VmExit::Killed => "the VMM was killed".to_owned(),
        VmExit::Died(why) => format!("the VMM ended: {why}"),
    }
}

fn greet_message(error: &GreetError) -> String {
    match error {
        GreetError::Vmm(e) => message_of(e),
        e => format!("the harness was not reached: {}", message_of(e)),
    }
}

/// An error and its causes in one line.
pub(crate) fn message_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_millis() as f64 / 1000.0)
}
