//! The thread of the guest's network. It is started before this process gives up sockets beyond the machine, and the
//! VMM after it: only this thread keeps them.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aegis_net::{Control, HostDialer, Network};
use aegis_types::{NetPolicy, NetSetup};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// For the network of a VM that has ended: it has a short list to write.
const FINISH_DEADLINE: Duration = Duration::from_secs(2);

/// What the thread is told.
enum Command {
    /// Serve this link in place of the last one. Its guest comes from a rest, or not.
    Serve(StdUnixStream, bool),
    Policy(NetPolicy),
    /// The guest's CPUs are halted, or go on.
    Paused(bool),
    /// Finish what the end of the VM left to do.
    Finish(oneshot::Sender<()>),
}

/// The network of this worker's VM. Clones are for the same one, which ends with the last of them.
#[derive(Clone)]
pub struct NetThread {
    commands: mpsc::UnboundedSender<Command>,
}

impl NetThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// As for starting threads.
    pub fn start(setup: NetSetup) -> io::Result<Self> {
        let (commands, received) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || runtime.block_on(serve(setup, received)))?;
        Ok(Self { commands })
    }

    /// Serves the guest behind this link; an earlier one is let go of. The connections of a guest that comes from a rest
    /// are reset.
    pub(crate) fn serve(&self, link: StdUnixStream, restored: bool) {
        self.tell(Command::Serve(link, restored));
    }

    /// Waits, but not for long, until the network of a VM that has ended left what the next one needs.
    pub(crate) async fn finish(&self) {
        let (done, finished) = oneshot::channel();
        self.tell(Command::Finish(done));
        if timeout(FINISH_DEADLINE, finished).await.is_err() {
            tracing::warn!("the network does not end");
        }
    }

    /// Puts another policy in force, also for VMs that are still to come.
    pub(crate) fn set_policy(&self, policy: NetPolicy) {
        self.tell(Command::Policy(policy));
    }

    /// The guest's CPUs are halted, or go on.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.tell(Command::Paused(paused));
    }

    fn tell(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("the thread of the network is gone");
        }
    }
}

/// A network that runs.
struct Running {
    task: JoinHandle<()>,
    control: Control,
}

async fn serve(mut setup: NetSetup, mut commands: mpsc::UnboundedReceiver<Command>) {
    let dialer = Arc::new(HostDialer::new(&setup.proxies));
    let mut running: Option<Running> = None;
    while let Some(command) = commands.recv().await {
        match command {
            Command::Serve(link, restored) => {
                if let Some(Running { task, .. }) = running.take() {
                    task.abort();
                }
                let link = link.set_nonblocking(true).and_then(|()| UnixStream::from_std(link));
                match link {
                    Ok(link) => {
                        let (network, control) = Network::new(setup.clone(), Arc::clone(&dialer) as _);
                        let network = if restored { network.restored() } else { network };
                        let task = tokio::spawn(async move {
                            if let Err(error) = network.run(link).await {
                                tracing::warn!(%error, "the guest has no network any more");
                            }
                        });
                        running = Some(Running { task, control });
                    }
                    Err(error) => tracing::warn!(%error, "the guest has no network"),
                }
            }
            Command::Finish(done) => {
                if let Some(Running { task, control }) = running.take() {
                    control.set_paused(false);
                    // Its link has ended, so it does. One that panicked has said so.
                    let _ = task.await;
                }
                let _ = done.send(());
            }
            Command::Paused(paused) => {
                if let Some(running) = &running {
                    running.control.set_paused(paused);
                }
            }
            Command::Policy(policy) => {
                setup.policy = policy.clone();
                if let Some(running) = &running {
                    running.control.set_policy(policy);
                }
            }
        }
    }
}
