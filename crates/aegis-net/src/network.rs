//! The network of a guest as its worker sees it: a future that serves it, and a handle that changes it meanwhile.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use aegis_types::{NetPolicy, NetSetup};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::dial::Dialer;
use crate::shared::Shared;
use crate::stack::Stack;
use crate::stale::Stale;

/// Changes what a running network does. Clones are for the same one.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
    changed: Arc<Notify>,
    paused: Arc<watch::Sender<bool>>,
}

impl Control {
    /// Lets everything stand still while the guest's CPUs do, time included: what is open stays so for as long as that
    /// takes, and the other sides wait.
    pub fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
        self.changed.notify_one();
    }

    /// Puts another policy in force. Connections that it does not allow are reset.
    pub fn set_policy(&self, policy: NetPolicy) {
        self.shared.set_policy(policy);
        self.changed.notify_one();
    }
}

/// The network of one guest.
pub struct Network {
    shared: Arc<Shared>,
    /// The policy, or whether the guest is paused.
    changed: Arc<Notify>,
    paused: watch::Receiver<bool>,
    /// The guest comes from a rest.
    restored: bool,
}

impl Network {
    /// A network as `setup` says, on the sockets of `dialer`.
    pub fn new(setup: NetSetup, dialer: Arc<dyn Dialer>) -> (Self, Control) {
        let (shared, changed) = (Arc::new(Shared::new(setup, dialer)), Arc::new(Notify::new()));
        let (pause, paused) = watch::channel(false);
        let paused_by = Arc::new(pause);
        let control =
            Control { shared: Arc::clone(&shared), changed: Arc::clone(&changed), paused: paused_by };
        (Self { shared, changed, paused, restored: false }, control)
    }

    /// For a guest that was saved while another network served it: the connections that it had are reset.
    #[must_use]
    pub fn restored(self) -> Self {
        Self { restored: true, ..self }
    }

    /// Serves a guest until its link ends. `link` carries Ethernet frames, each after its length in four bytes, as
    /// QEMU's `-netdev stream` does.
    ///
    /// # Errors
    /// The link broke, or what comes on it are no frames.
    pub async fn run(mut self, link: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut stack = Stack::new(Arc::clone(&self.shared), link);
        let mut policy = self.shared.policy();
        let stale = Stale::take(&self.shared.log_dir);
        if self.restored {
            stack.reset_stale(&stale);
        }
        let changed = self.changed;
        loop {
            let ended = tokio::select! {
                ended = poll_fn(|cx| stack.poll(cx)) => Some(ended),
                () = changed.notified() => None,
            };
            if let Some(ended) = ended {
                stack.stale().leave(&self.shared.log_dir);
                return ended;
            }
            let since = Instant::now();
            // Whoever could let it go on is gone at the end of the VM.
            if self.paused.wait_for(|paused| !paused).await.is_err() {
                return Ok(());
            }
            stack.stood_still(since.elapsed());
            if !Arc::ptr_eq(&policy, &self.shared.policy()) {
                policy = self.shared.policy();
                stack.policy_changed();
            }
        }
    }
}
