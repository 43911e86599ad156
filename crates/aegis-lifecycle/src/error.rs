//! Why a request was not carried out.

use aegis_types::{DiskSize, GuestPort, Handle, InstanceId, InstanceState, StopReason};

use crate::ports::WorkerError;

/// A request was refused or could not be completed; one variant per reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Only a running instance can do this.
    #[error("the instance is not running but {state}")]
    NotRunning {
        /// What it is instead.
        state: InstanceState,
    },
    /// It is being stopped at this moment.
    #[error("the instance is being stopped")]
    Stopping,
    /// It was disabled and may not be woken.
    #[error("the instance is disabled")]
    Disabled,
    /// Its command ended by itself; running it again must be asked for.
    #[error("the command of the instance has ended")]
    CommandEnded {
        /// Exit code of the command.
        exit_code: Option<u8>,
    },
    /// Its VM could not be started.
    #[error("the instance could not be booted: {message}")]
    BootFailed {
        /// What failed.
        message: String,
    },
    /// Other VMs have all the memory that VMs may have.
    #[error("{message}")]
    NoMemory {
        /// What is in the way.
        message: String,
    },
    /// It crashed so often that only an explicit start is tried.
    #[error("the instance crashed {count} times in a row")]
    CrashLoop {
        /// How often.
        count: u8,
    },
    /// It lived for as long as it may; starting it again must be asked for.
    #[error("the instance reached its longest life")]
    LifetimeOver,
    /// The instance that it belongs to is stopped.
    #[error("the parent of the instance is stopped")]
    ParentStopped,
    /// Its memory may not be written to disk.
    #[error("the memory of the instance is not saved: {why}")]
    KeepsMemory {
        /// Why not.
        why: &'static str,
    },
    /// Its disk can only become larger.
    #[error("the disk of the instance has {has} and cannot be made smaller")]
    DiskShrinks {
        /// Its size.
        has: DiskSize,
        /// The size that was asked for.
        wanted: DiskSize,
    },
    /// It is being hibernated at this moment.
    #[error("the instance is being hibernated")]
    Hibernating,
    /// Somebody uses it.
    #[error("the instance is in use")]
    InUse,
    /// Its VM ended while the request waited.
    #[error("the instance stopped in the meantime ({reason})")]
    Interrupted {
        /// Why it stopped.
        reason: StopReason,
    },
    /// It does not exist any more, or is being deleted.
    #[error("the instance is deleted")]
    Deleted,
    /// The daemon is going down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// Too many requests wait for this instance.
    #[error("too many requests wait for the instance")]
    Busy,
    /// The registry could not be written; nothing was changed.
    #[error("{0}")]
    Registry(String),
    /// The files of the instance could not be removed; the instance is still there.
    #[error("cannot remove the files of the instance: {0}")]
    Files(String),
    /// The worker did not do what it was asked.
    #[error("the worker of the instance failed: {0}")]
    Worker(String),
}

/// An instance could not be created; nothing is left of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// Another instance has this name.
    #[error("an instance named `{handle}` exists already")]
    HandleTaken {
        /// The name.
        handle: Handle,
        /// State of the other instance.
        state: InstanceState,
    },
    /// The instance that it is to belong to does not exist.
    #[error("there is no instance `{0}` that could be the parent")]
    NoParent(InstanceId),
    /// Another instance has this id.
    #[error("an instance with the id `{0}` exists already")]
    IdTaken(InstanceId),
    /// The registry could not be written.
    #[error("{0}")]
    Registry(String),
    /// The daemon is going down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// A process could not be asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExecError {
    /// The instance does not run and may not be woken.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The request is too large for the guest wire; nothing was started.
    #[error("the request of {length} bytes is too large")]
    TooLarge {
        /// Size of the encoded request in bytes.
        length: usize,
    },
    /// The guest could not be reached.
    #[error("cannot reach the guest: {0}")]
    Worker(#[from] WorkerError),
}

/// A port of the guest could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The instance does not run and may not be woken.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Nobody listens on the port.
    #[error("port {port} of the guest cannot be reached: {message}")]
    Refused {
        /// The port.
        port: GuestPort,
        /// What the guest says.
        message: String,
    },
    /// The guest could not be reached.
    #[error("cannot reach the guest: {0}")]
    Worker(#[from] WorkerError),
}

/// Files could not be asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CopyError {
    /// The instance does not run and may not be woken.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The guest has no such file, or it is not what was expected.
    #[error("{message}")]
    Refused {
        /// There is nothing at the path.
        not_found: bool,
        /// What the guest says.
        message: String,
    },
    /// The guest could not be reached.
    #[error("cannot reach the guest: {0}")]
    Worker(#[from] WorkerError),
}

/// A running process was lost: how it ended will never be known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecLost {
    /// The stream ended before the process did, usually because the VM is gone.
    #[error("the stream from the guest ended: {0}")]
    Ended(String),
    /// The guest broke the rules of the stream; its VM is being stopped.
    #[error("the guest broke the rules of the stream: {0}")]
    Violation(String),
}
