//! What the lifecycle needs from the outside. Adapters live in `aegisd`; fakes in `aegis-testkit`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use aegis_link::Carrier;
use aegis_proto::control::SecretContent;
use aegis_proto::logs::LogLine;
use aegis_proto::service::Service;
use aegis_proto::worker::{BootFailure, Exited, Ready, WorkerStatus};
use aegis_types::{InstanceId, VmId};
use async_trait::async_trait;
use zeroize::Zeroize as _;

use crate::record::{InstanceSpec, Record};

/// Starts workers and owns the files of instances.
#[async_trait]
pub trait Launcher: Send + Sync + 'static {
    /// Sees to it that what the instance's VM is started from is there, its image above all, which may have to be
    /// downloaded first. Called before anything else of a start. A dropped call may have done a part of it.
    ///
    /// # Errors
    /// Something that it needs cannot be had.
    async fn provide(&self, _spec: &InstanceSpec) -> Result<(), LaunchError> {
        Ok(())
    }

    /// Makes the instance's disk if it has none, makes its runtime directory, spawns a worker and connects to it.
    /// Success means that a worker runs, not that the guest answers. Starts from the saved VM if there is one, else
    /// from a template if one fits, else from the kernel; a saved VM that is used, or does not fit any more, is gone
    /// when this returns.
    ///
    /// # Errors
    /// Nothing is left running and no runtime directory is left behind.
    async fn launch(&self, spec: &InstanceSpec, vm: &VmId) -> Result<Launched, LaunchError>;

    /// Whether the instance has a complete saved VM.
    async fn has_saved(&self, id: &InstanceId) -> bool;

    /// Removes the saved VM of an instance that has no live one. Idempotent.
    async fn discard_saved(&self, id: &InstanceId);

    /// Connects to the worker that an earlier daemon started, if it still lives. A dead worker's leftovers are
    /// reaped and reported.
    async fn adopt(&self, id: &InstanceId) -> Adoption;

    /// Removes the runtime directory of a VM that is gone; its console text is kept. Idempotent.
    async fn clean_up(&self, id: &InstanceId);

    /// Removes every file of an instance: disk, logs, console, and the workspace that was made for it. Idempotent.
    ///
    /// # Errors
    /// Some file could not be removed; it may be tried again.
    async fn remove(&self, spec: &InstanceSpec) -> io::Result<()>;
}

/// A worker that runs.
pub struct Launched {
    /// The worker.
    pub worker: Arc<dyn Worker>,
    /// What the user should know, for the instance's log: why a saved VM was not used.
    pub notes: Vec<String>,
}

/// What was found of an earlier daemon's VM.
pub enum Adoption {
    /// The worker lives.
    Alive {
        /// Which boot it is.
        vm: VmId,
        /// Connection to it.
        worker: Arc<dyn Worker>,
    },
    /// It ended in the meantime, and how, if it could say.
    Gone(Option<Exited>),
    /// There was none.
    None,
}

/// A worker could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    /// What was attempted and why it failed, the whole chain.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
}

/// The process of one live VM.
#[async_trait]
pub trait Worker: Send + Sync + 'static {
    /// Waits until the guest answers.
    ///
    /// # Errors
    /// It did not come up; the worker ends by itself.
    async fn wait_ready(&self) -> Result<Ready, BootFailure>;

    /// State of the worker.
    ///
    /// # Errors
    /// See [`WorkerError`].
    async fn status(&self) -> Result<WorkerStatus, WorkerError>;

    /// Halts the CPUs. Idempotent.
    ///
    /// # Errors
    /// See [`WorkerError`].
    async fn pause(&self) -> Result<(), WorkerError>;

    /// Lets the CPUs go on. Idempotent.
    ///
    /// # Errors
    /// See [`WorkerError`].
    async fn resume(&self) -> Result<(), WorkerError>;

    /// Saves the VM and ends it. Success means that a complete saved VM exists and the VMM is gone; [`Worker::exited`]
    /// then says [`aegis_proto::worker::ExitReason::Hibernated`]. May be called again while it is under way.
    ///
    /// # Errors
    /// See [`WorkerError`]: the VM runs, and nothing is left of the attempt.
    async fn hibernate(&self) -> Result<(), WorkerError>;

    /// Stops the VM: processes get SIGTERM, after `grace` SIGKILL; zero ends the VMM at once. May be called again
    /// with a shorter grace while an earlier call waits.
    ///
    /// # Errors
    /// See [`WorkerError`]. A worker that is gone is a success.
    async fn stop(&self, grace: Duration) -> Result<(), WorkerError>;

    /// Opens a stream to a guest service.
    ///
    /// # Errors
    /// See [`WorkerError`].
    async fn open(&self, service: Service) -> Result<Box<dyn Carrier>, WorkerError> {
        self.open_with(service, &[]).await
    }

    /// Opens a stream and sends its first bytes at once: they may be with the guest even if this fails.
    ///
    /// # Errors
    /// See [`WorkerError`].
    async fn open_with(&self, service: Service, first: &[u8]) -> Result<Box<dyn Carrier>, WorkerError>;

    /// Waits until the worker is gone. A worker that died without a word has [`aegis_proto::worker::ExitReason::VmmDied`].
    async fn exited(&self) -> Exited;
}

/// A worker did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct WorkerError(pub String);

/// Knows what an instance's command is and what it is given: what its spec says, and what its image and secrets add.
#[async_trait]
pub trait Injector: Send + Sync + 'static {
    /// Looks up what the command of this boot is given. From now on its values are kept out of the instance's log.
    ///
    /// # Errors
    /// Something that it needs cannot be had. The command is not to be started.
    async fn inject(&self, spec: &InstanceSpec, vm: &VmId) -> Result<Injection, LaunchError>;
}

/// A command and what it is given. Values are wiped when it is dropped.
#[derive(Default)]
pub struct Injection {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory; the guest's choice when absent.
    pub workdir: Option<String>,
    /// User, as `USER[:GROUP]`; root when absent.
    pub user: Option<String>,
    /// Its environment, complete but for what the guest adds.
    pub env: BTreeMap<String, String>,
    /// Files of secrets.
    pub secret_files: Vec<SecretContent>,
    /// What the user should know, for the instance's log.
    pub notes: Vec<String>,
}

impl Drop for Injection {
    fn drop(&mut self) {
        self.env.values_mut().for_each(|value| value.zeroize());
    }
}

/// Where records are kept.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Inserts or replaces; durable when it returns.
    ///
    /// # Errors
    /// Nothing was changed.
    async fn save(&self, record: &Record) -> Result<(), RegistryError>;

    /// Deletes; a missing record is a success.
    ///
    /// # Errors
    /// Nothing was changed.
    async fn delete(&self, id: &InstanceId) -> Result<(), RegistryError>;
}

/// The registry could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the registry: {0}")]
pub struct RegistryError(pub String);

/// Where logs go. Never blocks on readers.
#[async_trait]
pub trait LogSink: Send + Sync + 'static {
    /// Appends output of the primary process of this VM.
    async fn output(&self, id: &InstanceId, vm: &VmId, line: LogLine);

    /// Appends a message of AegisVM.
    async fn system(&self, id: &InstanceId, message: SystemMessage);

    /// The primary process has said its last word: what was held back of it is stored.
    async fn ended(&self, _id: &InstanceId) {}

    /// Highest [`LogLine::seq`] that was stored for this VM; 0 for none.
    async fn last_seq(&self, id: &InstanceId, vm: &VmId) -> u64;
}

/// A line of AegisVM in an instance's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemMessage {
    /// Something normal: standard output.
    Info(String),
    /// Something the user should notice: standard error.
    Error(String),
}
