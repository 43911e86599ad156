//! The handle to one instance.

use std::sync::Arc;

use std::time::Duration;

use aegis_link::{Carrier, tcp};
use aegis_proto::exec::{Attach, ExecRequest, Start};
use aegis_proto::files;
use aegis_proto::service::Service;
use aegis_types::{GuestPort, InstanceState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::driver::{Grant, Reply, Request};
use crate::error::{ConnectError, CopyError, Denied, ExecError};
use crate::exec::ExecSession;
use crate::files::Copying;
use crate::ports::WorkerError;
use crate::record::{InstanceSpec, Update};
use crate::status::Status;
use crate::step::{Ask, Use};
use crate::tcp::{Connection, InUse};

/// Time for a worker to open a stream to its guest.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// One instance. Clones are handles to the same one. Dropping a call's future ends the wait, not what was
/// asked for.
#[derive(Clone)]
pub struct Instance {
    pub(crate) spec: Arc<InstanceSpec>,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) status: watch::Receiver<Status>,
}

impl Instance {
    /// What was asked for when this daemon got to know it: for what an update does not change. [`Status::spec`] has the
    /// rest.
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

    /// Undoes a pause or a hibernation and returns when the state is `running`. Idempotent.
    ///
    /// # Errors
    /// [`Denied::NotRunning`] without a VM to resume; see [`Denied`].
    pub async fn resume(&self) -> Result<(), Denied> {
        self.ask(Ask::Resume { next: crate::driver::fresh_vm_id() }).await
    }

    /// Saves the memory to disk, ends the VM and returns when it is gone. Whoever uses the VM loses it. Idempotent.
    ///
    /// # Errors
    /// [`Denied::KeepsMemory`] if it may not; [`Denied::Worker`] if it failed: then the VM goes on; see [`Denied`].
    pub async fn hibernate(&self) -> Result<(), Denied> {
        self.ask(Ask::Hibernate).await
    }

    /// Changes what is asked for: rules at once, the rest with the next start. Memory that was saved by another machine is
    /// discarded then.
    ///
    /// # Errors
    /// [`Denied::KeepsMemory`] if saved memory would stay on disk against the new rules; [`Denied::DiskShrinks`]; see
    /// [`Denied`].
    pub async fn update(&self, update: Update) -> Result<(), Denied> {
        let (reply, answer) = oneshot::channel();
        self.deliver(Request::Update { update: Box::new(update), reply: Reply::Done(reply) }, answer).await
    }

    /// Keeps the VM awake for this time, in place of what an earlier lease said.
    ///
    /// # Errors
    /// [`Denied::NotRunning`] without a VM.
    pub async fn keep_awake(&self, ttl: Duration, reason: Option<String>) -> Result<(), Denied> {
        let (reply, answer) = oneshot::channel();
        self.deliver(Request::Lease { ttl, reason, reply: Reply::Done(reply) }, answer).await
    }

    /// Ends the lease, if there is one.
    ///
    /// # Errors
    /// See [`Denied`].
    pub async fn release(&self) -> Result<(), Denied> {
        self.ask(Ask::Release).await
    }

    /// Counts as a user of the VM, which keeps it awake, until the value is dropped. Wakes nothing.
    ///
    /// # Errors
    /// See [`Denied`].
    pub async fn attach(&self) -> Result<InUse, Denied> {
        let (reply, answer) = oneshot::channel();
        self.send(Ask::Attach, Reply::Attach(reply), answer).await
    }

    /// Connects to a TCP port of the guest, waking the instance if it may be woken, again if somebody has it paused or
    /// hibernated before the guest has answered. The guest waits for a listener for `wait`. Counts as activity from the
    /// call on.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, port: GuestPort, wait: Duration) -> Result<Connection, ConnectError> {
        let deadline = Instant::now() + wait;
        loop {
            let rests = self.rests();
            let left = || deadline.saturating_duration_since(Instant::now());
            // One that is not accepted and goes to the guest again is another connection, and nobody's.
            let request = || tcp::request(port, left());
            let (grant, stream) =
                self.open_with::<ConnectError>(Use::Connection, Service::Tcp, request).await?;
            let opened = tokio::select! {
                opened = Connection::open(grant, stream, port, left()) => opened,
                denied = self.undo_pauses() => Err(denied.into()),
            };
            match opened {
                // Nobody has said anything yet, so nobody can tell that it is another try.
                Err(ConnectError::Worker(_)) if self.rests() != rests && Instant::now() < deadline => {}
                opened => return opened,
            }
        }
    }

    /// Resumes the VM whenever somebody has it paused. Ends when that is denied.
    async fn undo_pauses(&self) -> Denied {
        let mut status = self.watch();
        while status.wait_for(|status| status.state == InstanceState::Paused).await.is_ok() {
            if let Err(denied) = self.wake(Use::Connection).await {
                return denied;
            }
        }
        // There is no driver any more: whoever opens the connection learns that the VM is gone.
        std::future::pending().await
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
        // An older harness would not look at what it does not know.
        let service = match start.tty.is_some() || start.process.user.is_some() {
            true => Service::Streams,
            false => Service::Exec,
        };
        let (grant, stream) = self.open::<ExecError>(Use::Exec, service).await?;
        ExecSession::open(grant, stream, ExecRequest::Start(start)).await
    }

    /// Connects with the instance's own command, waking the instance if it may be woken. The rest is as with
    /// [`Instance::exec`].
    ///
    /// # Errors
    /// See [`ExecError`].
    pub async fn attach_streams(&self, attach: Attach) -> Result<ExecSession, ExecError> {
        let (grant, stream) = self.open::<ExecError>(Use::Exec, Service::Streams).await?;
        ExecSession::open(grant, stream, ExecRequest::Attach(attach)).await
    }

    /// Looks at files of the guest or copies some, waking the instance if it may be woken. Returns when the guest has
    /// looked at the path. Counts as an exec while the copy lives.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub async fn copy(&self, request: files::Request) -> Result<Copying, CopyError> {
        let (grant, stream) = self.open::<CopyError>(Use::Exec, Service::Files).await?;
        Copying::open(grant, stream, request).await
    }

    /// Wakes the instance and opens a stream to its guest, again if the instance went to rest in between.
    async fn open<E>(&self, purpose: Use, service: Service) -> Result<(Grant, Box<dyn Carrier>), E>
    where
        E: From<Denied> + From<WorkerError>,
    {
        self.open_with(purpose, service, Vec::new).await
    }

    /// The same, and sends the guest the first bytes at once: more than once, if the instance goes to rest in between.
    async fn open_with<E>(
        &self,
        purpose: Use,
        service: Service,
        first: impl Fn() -> Vec<u8>,
    ) -> Result<(Grant, Box<dyn Carrier>), E>
    where
        E: From<Denied> + From<WorkerError>,
    {
        loop {
            let rests = self.rests();
            let grant = self.wake(purpose).await?;
            match timeout(OPEN_TIMEOUT, grant.worker.open_with(service, &first())).await {
                Ok(Ok(stream)) => return Ok((grant, stream)),
                Ok(Err(_)) if self.rests() != rests => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let limit = OPEN_TIMEOUT.as_secs();
                    return Err(WorkerError(format!("it took no stream within {limit} s")).into());
                }
            }
        }
    }

    fn rests(&self) -> u64 {
        self.status.borrow().counters.rests
    }

    async fn wake(&self, purpose: Use) -> Result<Grant, Denied> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Wake { next: crate::driver::fresh_vm_id(), purpose };
        self.send(ask, Reply::Grant(reply), answer).await
    }

    /// Tells whether the parent runs, see [`Ask::Parent`].
    pub(crate) async fn parent_is(&self, up: bool) -> Result<(), Denied> {
        self.ask(Ask::Parent { up }).await
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
        self.deliver(Request::Ask { ask, reply }, answer).await
    }

    async fn deliver<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, Denied>>,
    ) -> Result<T, Denied> {
        let gone = || if self.status.borrow().deleted { Denied::Deleted } else { Denied::ShuttingDown };
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}
