//! The end of the machine: every process gets a chance, the disks get everything, then the power goes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::harness::Core;
use crate::sys::Sys;

/// Between SIGTERM and SIGKILL when nobody says otherwise.
pub(crate) const GRACE_DEFAULT: Duration = Duration::from_secs(5);
/// SIGKILL cannot be ignored, but a process in the middle of disk I/O dies only after it.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// What was handed to the link leaves through tasks of their own, which run as soon as this one waits: the answer to
/// the call that began this, and the last output.
const ANSWER_WAIT: Duration = Duration::from_millis(10);
/// For the last output and the end of processes to reach a host that reads them.
const DELIVERY_WAIT: Duration = Duration::from_secs(2);

const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;
const SIGCONT: u8 = 18;

/// Ends everything. Returns on a fake machine only.
pub(crate) async fn shut_down(core: &Core, grace: Duration) {
    let (sys, reaper) = (&*core.sys, &core.reaper);
    sleep(ANSWER_WAIT).await;
    info!("shutting down");
    signal_all(sys, SIGTERM);
    // A stopped process handles SIGTERM only once it runs again.
    signal_all(sys, SIGCONT);
    if timeout(grace, reaper.none_left()).await.is_err() {
        signal_all(sys, SIGKILL);
        if timeout(KILL_WAIT, reaper.none_left()).await.is_err() {
            warn!("processes are left after SIGKILL");
        }
    }
    if timeout(DELIVERY_WAIT, core.delivered()).await.is_err() {
        warn!("the host did not take the last output");
    }
    sleep(ANSWER_WAIT).await;
    // On another thread: what is written may go to a file system that this one serves.
    let written = Arc::clone(&core.sys);
    if tokio::task::spawn_blocking(move || written.sync()).await.is_err() {
        warn!("cannot write what is cached");
    }
    if let Err(why) = core.mounts.drain().await {
        warn!("{why}");
    }
    if let Err(error) = sys.remount_read_only() {
        warn!("cannot make the disks read-only: {error}");
    }
    sys.power_off();
}

fn signal_all(sys: &dyn Sys, signal: u8) {
    if let Err(error) = sys.signal_all(signal) {
        warn!("cannot send signal {signal} to all processes: {error}");
    }
}
