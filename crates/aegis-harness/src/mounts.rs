//! Directories of the host: mounted before any process runs, and served by the host in sessions ([`aegis_proto::fuse`]).
//!
//! A mount is made without the host: its kernel's requests wait in the device until there is a session. It stays for the life
//! of the guest, through every pause and hibernation.

use std::io;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use aegis_link::Carrier;
use aegis_proto::fuse::NONCE_BYTES;
use aegis_proto::hello::GuestMount;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::pump::Pump;
use crate::sys::Sys;

/// For the host to answer what it was asked.
const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Mounts {
    wanted: Mutex<Vec<GuestMount>>,
    /// By place.
    made: Mutex<Vec<GuestMount>>,
    pump: Arc<Pump>,
}

impl Mounts {
    pub(crate) fn new(sys: &Arc<dyn Sys>) -> Self {
        Self { wanted: Mutex::default(), made: Mutex::default(), pump: Arc::new(Pump::new(Arc::clone(sys))) }
    }

    fn wanted(&self) -> MutexGuard<'_, Vec<GuestMount>> {
        self.wanted.lock().expect("no panic while held")
    }

    /// Takes the list of the host, in the order in which it numbers them.
    pub(crate) fn want(&self, mounts: Vec<GuestMount>) {
        *self.wanted() = mounts;
    }

    /// Makes those that are missing. A template has one that can be written to, whatever its clone is to have.
    ///
    /// # Errors
    /// One cannot be made; the text says which and why.
    pub(crate) fn mount(&self, sys: &dyn Sys) -> Result<(), String> {
        let mut made = self.made.lock().expect("no panic while held");
        for (place, mount) in (0..).zip(&*self.wanted()) {
            let target = mount.target.as_str();
            let done = match made.get(place as usize) {
                Some(there) if there == mount => continue,
                Some(there) if there.target == mount.target && mount.read_only => sys.make_read_only(target),
                Some(_) => Err(io::ErrorKind::ResourceBusy.into()),
                None => sys
                    .mount_fuse(target, mount.read_only)
                    .and_then(|device| self.pump.add(place, target, device)),
            };
            done.map_err(|error| format!("cannot mount {target}: {error}"))?;
            made.truncate(place as usize);
            made.push(mount.clone());
        }
        Ok(())
    }

    /// Does in a template what its clones need not do then.
    pub(crate) async fn prepare(&self) {
        let pump = Arc::clone(&self.pump);
        match tokio::task::spawn_blocking(move || pump.open()).await {
            Ok(Ok(())) => {}
            // It is tried again when there is something to serve, and said then.
            Ok(Err(error)) => debug!("no port for directories of the host: {error}"),
            Err(error) => debug!("{error}"),
        }
    }

    /// Serves a session from its first bytes to its end.
    pub(crate) async fn serve<S: Carrier>(&self, mut stream: S) {
        let mut nonce = [0; NONCE_BYTES];
        if stream.read_exact(&mut nonce).await.is_err() {
            return;
        }
        let pump = Arc::clone(&self.pump);
        // The port may not take it at once.
        let begun = tokio::task::spawn_blocking(move || pump.begin(nonce)).await;
        match begun {
            Ok(Ok(())) => {
                // The host says nothing more, and goes when it is over.
                let _ = stream.read_u8().await;
            }
            Ok(Err(error)) => warn!("directories of the host cannot be reached: {error}"),
            Err(error) => debug!("{error}"),
        }
        self.pump.end(nonce);
    }

    /// Asks the host nothing more, and waits for the answers to what it was asked. The next session lets it go on.
    ///
    /// # Errors
    /// The answers did not come.
    pub(crate) async fn drain(&self) -> Result<(), String> {
        self.pump.hold();
        if timeout(DRAIN_WAIT, self.pump.quiet()).await.is_err() {
            return Err("the host does not answer for its directories".to_owned());
        }
        let pump = Arc::clone(&self.pump);
        let ended = tokio::task::spawn_blocking(move || pump.say_end()).await;
        match ended {
            Ok(ended) => {
                ended.map_err(|error| format!("cannot take leave of the host's directories: {error}"))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}
