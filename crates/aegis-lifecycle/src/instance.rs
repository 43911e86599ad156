//! The handle to one instance.

use std::sync::Arc;

use aegis_proto::exec::Start;
use tokio::sync::{mpsc, oneshot, watch};

use crate::driver::{Reply, Request};
use crate::error::{Denied, ExecError};
use crate::exec::ExecSession;
use crate::record::InstanceSpec;
use crate::status::Status;
use crate::step::Ask;

/// One instance. Clones are handles to the same one. Dropping a call's future ends the wait, not what was
/// asked for.
#[derive(Clone)]
pub struct Instance {
    pub(crate) spec: Arc<InstanceSpec>,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) status: watch::Receiver<Status>,
}

impl Instance {
    /// What was asked for.
    pub fn spec(&self) -> &InstanceSpec {
        &self.spec
    }

    /// What is observed now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows what is observed. The channel closes when the instance is deleted or the daemon goes down.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Enables the instance and boots or resumes it. Returns once that was accepted: the boot goes on.
    ///
    /// # Errors
    /// See [`Denied`].
    pub async fn start(&self) -> Result<(), Denied> {
        self.ask(Ask::Start { next: crate::driver::fresh_vm_id() }).await
    }

    /// Stops the VM, if there is one, and returns when it is gone. The instance stays enabled.
    ///
    /// # Errors
    /// See [`Denied`].
    pub async fn stop(&self) -> Result<(), Denied> {
        self.ask(Ask::Stop).await
    }

    /// Enables the instance and boots it anew, after stopping its VM if there is one. Returns once that was
    /// accepted: the state is `starting`.
    ///
    /// # Errors
    /// See [`Denied`].
    pub async fn restart(&self) -> Result<(), Denied> {
        self.ask(Ask::Restart { next: crate::driver::fresh_vm_id() }).await
    }

    /// Forbids waking, stops the VM, if there is one, and returns when it is gone.
    ///
    /// # Errors
    /// See [`Denied`].
    pub async fn disable(&self) -> Result<(), Denied> {
        self.ask(Ask::Disable).await
    }

    /// Halts the CPUs and returns when the state is `paused`. Idempotent.
    ///
    /// # Errors
    /// [`Denied::NotRunning`] without a running VM; see [`Denied`].
    pub async fn pause(&self) -> Result<(), Denied> {
        self.ask(Ask::Pause).await
    }

    /// Undoes a pause and returns when the state is `running`. Idempotent.
    ///
    /// # Errors
    /// [`Denied::NotRunning`] without a VM to resume; see [`Denied`].
    pub async fn resume(&self) -> Result<(), Denied> {
        self.ask(Ask::Resume).await
    }

    /// Ends the VM at once, removes files and record, and returns when all of it is gone.
    ///
    /// # Errors
    /// [`Denied::Files`] or [`Denied::Registry`] when something could not be removed: the instance is then
    /// stopped and can be deleted again. [`Denied::Deleted`] when it was gone already.
    pub async fn delete(&self) -> Result<(), Denied> {
        self.ask(Ask::Delete).await
    }

    /// Starts a process in the guest, waking the instance if it may be woken. Returns when the guest was asked;
    /// whether the process started is the first event. Counts as activity while the session lives.
    ///
    /// # Errors
    /// See [`ExecError`].
    pub async fn exec(&self, start: Start) -> Result<ExecSession, ExecError> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Wake { next: crate::driver::fresh_vm_id() };
        let grant = self.send(ask, Reply::Grant(reply), answer).await?;
        ExecSession::open(grant, start).await
    }

    async fn ask(&self, ask: Ask) -> Result<(), Denied> {
        let (reply, answer) = oneshot::channel();
        self.send(ask, Reply::Done(reply), answer).await
    }

    async fn send<T>(
        &self,
        ask: Ask,
        reply: Reply,
        answer: oneshot::Receiver<Result<T, Denied>>,
    ) -> Result<T, Denied> {
        let gone = || if self.status.borrow().deleted { Denied::Deleted } else { Denied::ShuttingDown };
        self.requests.send(Request::Ask { ask, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}
