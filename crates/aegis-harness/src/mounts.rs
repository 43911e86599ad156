//! Directories of the host: mounted before any process runs, and served by the host over one stream each.
//!
//! A mount is made without the host: its kernel's requests wait in the device until a stream is there. It stays for the life
//! of the guest, through every pause and hibernation.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aegis_link::Carrier;
use aegis_proto::hello::GuestMount;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use crate::pump::Mounted;
use crate::sys::Sys;

/// From a stream to the mount that it is for, which is made while the root becomes ready.
const MOUNT_WAIT: Duration = Duration::from_secs(30);
/// For the host to answer what it was asked.
const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(crate) struct Mounts {
    wanted: Mutex<Vec<GuestMount>>,
    made: watch::Sender<Vec<Arc<Mounted>>>,
}

impl Mounts {
    fn wanted(&self) -> MutexGuard<'_, Vec<GuestMount>> {
        self.wanted.lock().expect("no panic while held")
    }

    /// Takes the list of the host, in the order in which it numbers them.
    pub(crate) fn want(&self, mounts: Vec<GuestMount>) {
        *self.wanted() = mounts;
    }

    /// Makes those that are missing. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// One cannot be made; the text says which and why.
    pub(crate) fn mount(&self, sys: &dyn Sys) -> Result<(), String> {
        for GuestMount { target, read_only } in &*self.wanted() {
            if self.made.borrow().iter().any(|mounted| mounted.target() == target.as_str()) {
                continue;
            }
            let made = sys.mount_fuse(target.as_str(), *read_only);
            let mounted = made.and_then(|device| Mounted::new(target.as_str(), device));
            let mounted = mounted.map_err(|error| format!("cannot mount {target}: {error}"))?;
            self.made.send_modify(|made| made.push(Arc::new(mounted)));
        }
        Ok(())
    }

    /// Serves a stream from its first bytes to its end.
    pub(crate) async fn serve<S: Carrier>(&self, sys: &Arc<dyn Sys>, mut stream: S) {
        let Ok(number) = stream.read_u16().await else { return };
        let target = self.wanted().get(usize::from(number)).map(|mount| mount.target.clone());
        let Some(target) = target else { return debug!("there is no mount {number}") };
        let mut made = self.made.subscribe();
        let found = |made: &Vec<Arc<Mounted>>| {
            made.iter().find(|mounted| mounted.target() == target.as_str()).cloned()
        };
        let mounted = match timeout(MOUNT_WAIT, made.wait_for(|made| found(made).is_some())).await {
            Ok(Ok(made)) => found(&made),
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(mounted) = mounted else { return debug!("{target} was not mounted in time") };
        mounted.pump(sys, stream).await;
    }

    /// Asks the host nothing more, and waits for the answers to what it was asked. The next stream of a mount lets it go on.
    ///
    /// # Errors
    /// The answers did not come.
    pub(crate) async fn drain(&self) -> Result<(), String> {
        let made = self.made.borrow().clone();
        for mounted in &made {
            mounted.hold();
        }
        for mounted in &made {
            if timeout(DRAIN_WAIT, mounted.answered()).await.is_err() {
                return Err(format!("the host does not answer for {}", mounted.target()));
            }
        }
        Ok(())
    }
}
