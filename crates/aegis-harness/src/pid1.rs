//! The harness as PID 1 of a real machine.
//!
//! **Invariant:** [`main`] does not return there. The kernel panics when PID 1 ends, so even a bug in the harness
//! ends in an orderly restart of the machine, which its VMM takes as the end. The kernel's OOM killer spares PID 1
//! by itself; an adjusted score would only be inherited by the processes it starts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::console::{self, Console};
use crate::port::{self, Port};
use crate::sys::Sys as _;
use crate::sys::linux::LinuxSys;
use crate::{Harness, SessionEnd, VERSION};

/// Name of the port that carries the link.
const PORT_NAME: &str = "aegis.ctl";
const PORT_POLL: Duration = Duration::from_millis(1);
const PORT_POLL_MAX: Duration = Duration::from_millis(50);
/// A port that is missing for this long is worth a line on the console, each time.
const PORT_COMPLAINT: Duration = Duration::from_secs(5);
/// Between attempts when the link does not even come up: a broken host must not make the guest spin.
const SESSION_RETRY: Duration = Duration::from_millis(20);

/// Runs the harness. Returns only in a process that is not PID 1, where it does nothing.
pub fn main() -> ExitCode {
    if std::process::id() != 1 {
        refuse();
        return ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|panic| {
        console::write(&format!("PANIC: {panic}"));
        end_machine();
    }));
    // Nothing else sets one up; the kernel's default is the same today.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // The first and only subscriber of this process.
    let _ = tracing::subscriber::set_global_default(Console::new());
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => console::write(&format!("cannot start: {error}")),
    }
    end_machine();
    ExitCode::FAILURE
}

#[expect(clippy::print_stderr, reason = "somebody started the guest's PID 1 by hand")]
fn refuse() {
    eprintln!("aegis-harness {VERSION} is PID 1 of an AegisVM guest and does nothing elsewhere");
}

/// Saves what can be saved and ends the machine.
fn end_machine() {
    let sys = LinuxSys::default();
    sys.sync();
    sys.power_off();
}

async fn run() {
    let harness = Harness::boot(Arc::new(LinuxSys::default()));
    info!("version {VERSION} is up");
    tokio::select! {
        () = serve_sessions(&harness) => {}
        () = serve_signals(&harness) => {}
    }
}

/// A power button or a `kill 1` of somebody inside the guest.
async fn serve_signals(harness: &Harness) {
    let (mut term, mut int) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    loop {
        tokio::select! {
            Some(()) = next(&mut term) => {}
            Some(()) = next(&mut int) => {}
        }
        harness.shut_down();
    }
}

fn listen(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| warn!("cannot listen for signal {kind:?}: {error}")).ok()
}

async fn next(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

async fn serve_sessions(harness: &Harness) {
    let mut path = wait_for_port().await;
    loop {
        match Port::connect(&path).await {
            Ok(port) => match harness.serve(port).await {
                SessionEnd::Parked => debug!("parked"),
                SessionEnd::Closed => debug!("the link ended"),
                SessionEnd::NoLink(error) => {
                    debug!("no link: {error}");
                    sleep(SESSION_RETRY).await;
                }
            },
            Err(error) => {
                warn!("cannot open {}: {error}", path.display());
                sleep(SESSION_RETRY).await;
                path = wait_for_port().await;
            }
        }
    }
}

async fn wait_for_port() -> PathBuf {
    let mut pause = PORT_POLL;
    let mut complaint = Instant::now() + PORT_COMPLAINT;
    loop {
        if let Some(path) = port::find(PORT_NAME) {
            return path;
        }
        if Instant::now() >= complaint {
            warn!(
                "there is still no port `{PORT_NAME}` in {}",
                Path::new("/sys/class/virtio-ports").display()
            );
            complaint += PORT_COMPLAINT;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PORT_POLL_MAX);
    }
}
