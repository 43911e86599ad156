//! The harness as a whole: boots, then serves one link session after the other.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aegis_link::guest::{GuestLink, Incoming, receive_hello, send_parked};
use aegis_link::{Carrier, LinkError, Stream, buffered, rpc};
use aegis_proto::GENERATION;
use aegis_proto::hello::{GuestNetwork, Hello, Welcome};
use aegis_proto::service::Service;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::control::Control;
use crate::identity::{self, ApplyError, Identity};
use crate::mounts::Mounts;
use crate::primary::Primary;
use crate::reaper::Reaper;
use crate::settle::Settled;
use crate::sys::Sys;
use crate::tasks::Tasks;
use crate::{VERSION, activity, boot, disk, exec, files, shutdown, tcp};

/// A host that greets at once is answered before the root is mounted; after this long without a greeting the time
/// is better spent on the root.
const GREETING_WAIT: Duration = Duration::from_millis(20);

/// Why [`Harness::serve`] returned. Processes are untouched in every case: serve the next carrier.
#[derive(Debug)]
pub enum SessionEnd {
    /// The host parked the guest: the next session tells it that the VM may be saved.
    Parked,
    /// The link was established and is over.
    Closed,
    /// There was no link: the carrier ended, or the greeting could not be applied.
    NoLink(SessionError),
}

/// Why a session had no link.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The carrier ended or the greeting breaks the rules.
    #[error("no greeting")]
    Link(#[from] LinkError),
    /// The greeting is not safe to answer.
    #[error("the greeting cannot be applied: {0}")]
    Greeting(String),
}

impl From<ApplyError> for SessionError {
    fn from(error: ApplyError) -> Self {
        Self::Greeting(with_causes(&error))
    }
}

/// An error as one line with everything that led to it.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// State of the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    /// Modules that were not loaded yet.
    Waiting(Vec<PathBuf>),
    Preparing,
    Ready,
    Failed(String),
}

/// What the services share.
pub(crate) struct Core {
    pub(crate) sys: Arc<dyn Sys>,
    pub(crate) reaper: Reaper,
    pub(crate) primary: Arc<Primary>,
    pub(crate) tasks: Tasks,
    pub(crate) mounts: Mounts,
    root: watch::Sender<Root>,
    /// Also held while the root becomes ready, so that exactly one side writes the files of the identity.
    known: Mutex<Known>,
    parked: AtomicBool,
    stopping: AtomicBool,
    /// Processes whose output and end are still on their way.
    delivering: watch::Sender<usize>,
}

/// Who the guest is, and what was done about it.
#[derive(Default)]
struct Known {
    identity: Option<Identity>,
    /// The network as it is set up.
    network: Option<GuestNetwork>,
}

/// Counts one process as long as it lives.
pub(crate) struct Delivery(watch::Sender<usize>);

impl Drop for Delivery {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Core {
    /// Counts a process until the value is dropped.
    pub(crate) fn deliver(&self) -> Delivery {
        self.delivering.send_modify(|count| *count += 1);
        Delivery(self.delivering.clone())
    }

    /// Waits until the output and the end of every process are with the host, as far as it reads them.
    pub(crate) async fn delivered(&self) {
        // The sender is a field of `self`.
        let _ = self.delivering.subscribe().wait_for(|count| *count == 0).await;
        self.primary.logs.delivered().await;
    }

    /// Waits until processes can be started.
    ///
    /// # Errors
    /// They never can: the text says why.
    pub(crate) async fn ready_to_start(&self) -> Result<(), String> {
        let mut root = self.root.subscribe();
        let settled = root.wait_for(|root| matches!(root, Root::Ready | Root::Failed(_))).await;
        match settled.as_deref() {
            Ok(Root::Failed(why)) => return Err(format!("the root file system is not available: {why}")),
            Ok(_) => {}
            // The sender is a field of `self`.
            Err(_) => return Err("the harness is going away".to_owned()),
        }
        if self.stopping.load(Ordering::Relaxed) {
            return Err("the machine is shutting down".to_owned());
        }
        Ok(())
    }

    /// The next session tells the host that the guest may be saved.
    pub(crate) fn park(&self) {
        self.parked.store(true, Ordering::Relaxed);
    }

    /// Ends every process and then the machine, in the background. Only the first call counts.
    pub(crate) fn begin_shutdown(self: &Arc<Self>, grace: Duration) {
        if self.stopping.swap(true, Ordering::Relaxed) {
            return;
        }
        let core = Arc::clone(self);
        self.tasks.spawn(async move { shutdown::shut_down(&core, grace).await });
    }

    /// Begins to prepare the root unless that happened already.
    fn prepare_root(self: &Arc<Self>) {
        let mut left = None;
        self.root.send_if_modified(|root| match root {
            Root::Waiting(modules) => {
                left = Some(std::mem::take(modules));
                *root = Root::Preparing;
                true
            }
            _ => false,
        });
        let Some(modules) = left else { return };
        let core = Arc::clone(self);
        self.tasks.spawn(async move {
            let sys = Arc::clone(&core.sys);
            let prepared = tokio::task::spawn_blocking(move || boot::prepare_root(&*sys, &modules)).await;
            let state = match prepared {
                Ok(Ok(())) => Root::Ready,
                Ok(Err(error)) => Root::Failed(with_causes(&error)),
                Err(error) => Root::Failed(with_causes(&error)),
            };
            if let Root::Failed(why) = &state {
                warn!("no root file system: {why}");
            }
            core.complete_root(state);
        });
    }

    /// Gives a root that is ready otherwise its size and the files of the identity, mounts what the host has, and lets processes
    /// start.
    fn complete_root(&self, mut state: Root) {
        let mut known = self.known.lock().expect("no panic while held");
        let Known { identity, network } = &mut *known;
        if let (Root::Ready, Some(identity)) = (&state, identity) {
            // First: the rest is written to it.
            let grown = identity.disk_bytes.map_or(Ok(()), |bytes| disk::grow_to(&*self.sys, bytes));
            let grown = grown.map_err(|error| with_causes(&error));
            identity::settle(&*self.sys, identity, network);
            if let Err(why) = grown.and_then(|()| self.mounts.mount(&*self.sys)) {
                warn!("{why}");
                state = Root::Failed(why);
            }
        }
        self.root.send_replace(state);
    }

    /// Applies a greeting: afterwards it may be answered.
    fn apply(self: &Arc<Self>, hello: &mut Hello) -> Result<(), ApplyError> {
        let new = identity::apply(&*self.sys, hello)?;
        self.mounts.want(std::mem::take(&mut hello.mounts));
        let mut known = self.known.lock().expect("no panic while held");
        let Known { identity, network } = &mut *known;
        let old = identity.take();
        let new = identity.insert(new);
        // A guest that was saved is mostly greeted as who it is. The files of a root that is not ready are written
        // when it becomes so.
        if *self.root.borrow() != Root::Ready || old.as_ref() == Some(new) {
            return Ok(());
        }
        if old.is_some_and(|old| old.is_somebody()) {
            identity::settle(&*self.sys, new, network);
            return Ok(());
        }
        // It was nobody, so no process runs in it, and none will before the files are there: they cost more than
        // everything else that makes a template somebody, and the answer need not wait for them.
        self.root.send_replace(Root::Preparing);
        let core = Arc::clone(self);
        self.tasks.spawn(async move {
            let completed = Arc::clone(&core);
            let written = tokio::task::spawn_blocking(move || completed.complete_root(Root::Ready)).await;
            if let Err(error) = written {
                core.root.send_replace(Root::Failed(with_causes(&error)));
            }
        });
        Ok(())
    }

    async fn offer(self: Arc<Self>, incoming: Incoming) {
        let served = match incoming.accept().await {
            Ok(Some((service, stream))) => self.serve_stream(service, stream).await,
            // An unknown service was refused.
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = served {
            debug!("a stream ended early: {error}");
        }
    }

    async fn serve_stream(self: Arc<Self>, service: Service, stream: Stream) -> Result<(), String> {
        match service {
            Service::Control => {
                rpc::serve(stream, Arc::new(Control(self)), None).await.map_err(|e| e.to_string())
            }
            Service::Exec | Service::Streams => {
                exec::serve(self, stream).await;
                Ok(())
            }
            Service::Files => {
                files::serve(self, stream).await;
                Ok(())
            }
            Service::Tcp => {
                tcp::serve(stream).await;
                Ok(())
            }
            Service::Activity => {
                activity::serve(&*self.sys, stream).await;
                Ok(())
            }
            Service::Fuse => {
                self.mounts.serve(stream).await;
                Ok(())
            }
            Service::Logs => self.primary.logs.serve(stream).await.map_err(|e| e.to_string()),
        }
    }
}

/// Guest PID 1 without a process around it. Dropping it ends its tasks.
pub struct Harness {
    core: Arc<Core>,
}

impl Harness {
    /// Boots: mounts what the link needs, loads its modules and prepares the root in the background. Must be
    /// called in a tokio runtime with time, signals and I/O.
    pub fn boot(sys: Arc<dyn Sys>) -> Self {
        let modules = boot::first_steps(&*sys);
        let core = Arc::new(Core {
            reaper: Reaper::new(Arc::clone(&sys)),
            mounts: Mounts::new(&sys),
            sys,
            primary: Arc::new(Primary::new()),
            tasks: Tasks::default(),
            root: watch::Sender::new(Root::Waiting(modules)),
            known: Mutex::default(),
            parked: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            delivering: watch::Sender::new(0),
        });
        let reaping = Arc::clone(&core);
        core.tasks.spawn(async move { reaping.reaper.run().await });
        let waiting = Arc::clone(&core);
        core.tasks.spawn(async move {
            tokio::time::sleep(GREETING_WAIT).await;
            waiting.prepare_root();
        });
        Self { core }
    }

    /// Serves one session: waits for the greeting, applies and answers it, then serves streams until the link
    /// ends. The carrier has been dropped when this returns, so the port can be opened again.
    pub async fn serve<C: Carrier>(&self, carrier: C) -> SessionEnd {
        match self.session(carrier).await {
            Ok(()) if self.core.parked.load(Ordering::Relaxed) => SessionEnd::Parked,
            Ok(()) => SessionEnd::Closed,
            Err(error) => SessionEnd::NoLink(error),
        }
    }

    async fn session<C: Carrier>(&self, carrier: C) -> Result<(), SessionError> {
        let core = &self.core;
        // What is read ahead belongs to this session: the host says nothing for the next one before it has heard of it.
        let mut carrier = buffered(carrier);
        if core.parked.load(Ordering::Relaxed) {
            end_line(&mut carrier).await?;
            send_parked(&mut carrier).await.map_err(LinkError::Io)?;
        }
        let mut hello = receive_hello(&mut carrier).await?;
        core.apply(&mut hello)?;
        core.parked.store(false, Ordering::Relaxed);
        let welcome = Welcome {
            generation: GENERATION.min(hello.generation),
            nonce: hello.nonce,
            version: VERSION.to_owned(),
            boottime_ns: u64::try_from(core.sys.boot_time().as_nanos()).unwrap_or(u64::MAX),
        };
        end_line(&mut carrier).await?;
        let mut link = GuestLink::welcome(Settled::new(carrier), welcome).await?;
        core.prepare_root();
        while let Some(incoming) = link.accept().await {
            core.tasks.spawn(Arc::clone(core).offer(incoming));
        }
        link.ended().await;
        Ok(())
    }

    /// Ends every process and switches the machine off, as a host's `shutdown` call does.
    pub fn shut_down(&self) {
        self.core.begin_shutdown(shutdown::GRACE_DEFAULT);
    }
}

/// Ends whatever the multiplexer of an earlier session left in the pipe to the host, so that the host sees the
/// next greeting as a line of its own.
async fn end_line<C: Carrier>(carrier: &mut C) -> Result<(), LinkError> {
    Ok(carrier.write_all(b"\n").await?)
}

impl Drop for Harness {
    fn drop(&mut self) {
        // The tasks own what owns them; ending them is what frees it.
        self.core.tasks.abort();
    }
}
