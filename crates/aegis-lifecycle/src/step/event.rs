//! What happens to an instance, and what is to be done about it. Plain data.

use std::time::Duration;

use aegis_proto::control::StartFailure;
use aegis_proto::worker::Exited;
use aegis_types::{ExitStatus, VmId};

use super::{Rules, StopCause, Timer, Use};
use crate::error::Denied;
use crate::ports::SystemMessage;

/// Tells waiting requests apart.
pub type RequestId = u64;

/// Something happened. An event that names a VM other than the current one is late and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants something.
    Request {
        /// Answered by exactly one [`Effect::Answer`], unless the step itself denies it.
        id: RequestId,
        /// What.
        ask: Ask,
    },
    /// A worker runs.
    Launched {
        /// Its VM.
        vm: VmId,
    },
    /// The command runs.
    Booted {
        /// Its VM.
        vm: VmId,
    },
    /// No worker could be started, or its VM did not come up.
    BootFailed {
        /// The VM that was to be.
        vm: VmId,
        /// Why.
        failure: BootProblem,
    },
    /// The VM is up and the command could not be started.
    StartFailed {
        /// Its VM.
        vm: VmId,
        /// Why.
        failure: StartFailure,
    },
    /// The command ended; all of its output is stored.
    ProcessExited {
        /// Its VM.
        vm: VmId,
        /// How.
        status: ExitStatus,
        /// How long it had run, as far as is known.
        ran: Option<Duration>,
    },
    /// The guest worked by itself.
    Activity {
        /// Its VM.
        vm: VmId,
    },
    /// A use of a VM is over, whether the VM is still there or not.
    UseEnded(Use),
    /// A timer that was armed has run out. `next` is an unused id for a boot that may follow.
    Elapsed {
        /// Which.
        timer: Timer,
        /// Id of the boot that may follow.
        next: VmId,
    },
    /// The guest broke the rules or cannot be talked to.
    GuestFault {
        /// Its VM.
        vm: VmId,
        /// How.
        message: String,
    },
    /// An [`Effect::Pause`] is over.
    PauseDone {
        /// Its VM.
        vm: VmId,
        /// Whether the CPUs are halted.
        outcome: Result<(), String>,
    },
    /// An [`Effect::Resume`] is over.
    ResumeDone {
        /// Its VM.
        vm: VmId,
        /// Whether the CPUs run.
        outcome: Result<(), String>,
    },
    /// An [`Effect::Hibernate`] failed; the VM runs. Success is [`Event::Gone`].
    HibernateFailed {
        /// Its VM.
        vm: VmId,
        /// Why.
        message: String,
    },
    /// The worker is gone; nothing that its guest said is still on its way.
    Gone {
        /// Its VM.
        vm: VmId,
        /// How it ended.
        exited: Exited,
    },
    /// The worker is still there although it was told to end at once.
    StopStuck {
        /// Its VM.
        vm: VmId,
        /// What was tried.
        message: String,
    },
    /// An [`Effect::CleanUp`] is over.
    Cleaned {
        /// The VM that is gone.
        vm: VmId,
    },
    /// An [`Effect::Remove`] is over.
    Removed(Result<(), Denied>),
    /// The daemon goes down.
    Shutdown {
        /// Time for the guest's processes.
        grace: Duration,
        /// VMs that may be saved are saved in place of being stopped.
        save: bool,
    },
}

/// What somebody wants. Those that may lead to a boot bring an unused id for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Enable; boot or resume. Answered when accepted.
    Start {
        /// Id of the boot that may follow.
        next: VmId,
    },
    /// Stop. Answered when the VM is gone.
    Stop,
    /// Enable; stop, then boot. Answered when accepted.
    Restart {
        /// Id of the boot that follows.
        next: VmId,
    },
    /// Forbid waking and stop. Answered when the VM is gone.
    Disable,
    /// Halt the CPUs. Answered when they are.
    Pause,
    /// Undo [`Ask::Pause`] or [`Ask::Hibernate`]. Answered when the command goes on.
    Resume {
        /// Id of the start that may follow.
        next: VmId,
    },
    /// Save the memory and end the VM. Answered when it is gone.
    Hibernate,
    /// The same, unless somebody uses the VM.
    Evict,
    /// Boot or resume if the instance may be woken, to use it. Answered when it runs.
    Wake {
        /// Id of the boot that may follow.
        next: VmId,
        /// What for.
        purpose: Use,
    },
    /// The parent has stopped, which stops this one and keeps it from being started, or is back, which allows it again.
    /// Answered when that is so.
    Parent {
        /// It is not stopped.
        up: bool,
    },
    /// Count as a user without waking anything. Answered at once.
    Attach,
    /// Keep the VM awake. Answered at once.
    Lease {
        /// For this time from now on, in place of what an earlier lease said.
        ttl: Duration,
    },
    /// End the lease. Answered at once.
    Release,
    /// Go by other rules from now on; idle times begin anew. Answered at once.
    Follow {
        /// The rules.
        rules: Box<Rules>,
    },
    /// End the VM at once and remove everything. Answered when all is gone.
    Delete,
}

/// Why a boot failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootProblem {
    /// What failed.
    pub message: String,
    /// More lines for the log: a hint, the end of the guest's console.
    pub details: Vec<String>,
    /// Other VMs have all the memory: nothing is wrong with this one.
    pub no_memory: bool,
}

/// Something to do. Effects are performed in order; those that take time report back with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Writes the record of the new state. Always first; if it fails, the step has not happened and its request
    /// is denied.
    Record,
    /// Remembers how the last VM ended and writes the record. A failure is only logged: the next start of the
    /// daemon finds that VM gone and repairs the record.
    RecordEnd(StopCause),
    /// Starts a worker and boots, or restores what was saved: [`Event::Launched`], then [`Event::Booted`], or
    /// [`Event::BootFailed`].
    Launch {
        /// The new VM.
        vm: VmId,
        /// Nothing is saved: a new life begins.
        fresh: bool,
    },
    /// Goes on with the guest of a worker that is there already: [`Event::Booted`] or a failure.
    Attach {
        /// The VM.
        vm: VmId,
    },
    /// Halts the CPUs: [`Event::PauseDone`].
    Pause {
        /// The VM.
        vm: VmId,
    },
    /// Lets the CPUs go on: [`Event::ResumeDone`].
    Resume {
        /// The VM.
        vm: VmId,
    },
    /// Saves the VM and ends it: [`Event::Gone`], or [`Event::HibernateFailed`].
    Hibernate {
        /// The VM.
        vm: VmId,
    },
    /// Removes what was saved of the VM that is gone. Done when the next effect begins.
    Discard,
    /// Starts a timer, in place of one of the same kind: [`Event::Elapsed`].
    Arm {
        /// Which.
        timer: Timer,
        /// Time from now.
        after: Duration,
    },
    /// Stops a timer.
    Disarm {
        /// Which.
        timer: Timer,
    },
    /// Ends the VM: [`Event::Gone`], or [`Event::StopStuck`] if that does not help.
    Stop {
        /// The VM.
        vm: VmId,
        /// Time for the guest's processes; zero ends the VMM at once.
        grace: Duration,
    },
    /// Removes what the worker left behind: [`Event::Cleaned`].
    CleanUp {
        /// The VM that is gone.
        vm: VmId,
    },
    /// Removes files, then the record: [`Event::Removed`].
    Remove,
    /// Adds a line to the instance's log.
    Log(SystemMessage),
    /// Answers a request.
    Answer {
        /// Which.
        id: RequestId,
        /// The answer.
        outcome: Result<(), Denied>,
        /// The right to use the VM comes with the answer; [`Event::UseEnded`] gives it back.
        grant: Option<Use>,
    },
}
