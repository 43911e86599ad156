//! The worker: one process per live VM, which introduces the VMM, the guest link and the daemon to each other.
//!
//! It boots or restores the VM under a watchdog, serves two sockets (JSON-RPC for the daemon, and byte streams to guest
//! services), keeps the link alive and ends with the VM. It survives the daemon: a later one finds it by its
//! runtime directory. `main` adds what only a process of its own can do: confinement ([`confine`]) and signals.
//!
//! ```text
//!            requests              ┌────────┐ boot, pause, kill   ┌─────┐
//! control ──────────────────────► │ driver │ ──────────────────► │ Vmm │
//! clients ◄── watch of the view ── └────────┘ ── greet, control ► guest
//! streams ◄── link in the view ────────────────── open ─────────►
//! ```
//!
//! **Invariant:** the driver alone owns the VM; servers send it requests and read what it publishes. When
//! [`run`] returns, the VMM has been reaped. The guest is hostile: what it sends ends its own link at most.
#![forbid(unsafe_code)]

mod boot;
pub mod confine;
mod content;
mod control;
mod driver;
mod files;
mod guest;
mod hibernate;
mod memory;
mod mounts;
mod network;
mod notes;
mod probe;
mod saved;
mod streams;
mod view;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aegis_proto::worker::{Confinement, Exited, WorkerConfig};
use aegis_vmm::Vmm;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};

pub use mounts::MountThread;
pub use network::NetThread;
pub use probe::{ProbeReport, probe};

/// Requests of clients that the driver has not taken yet; clients wait beyond that.
const REQUESTS: usize = 64;
/// Grace for the guest when the worker itself is told to end.
const TERMINATE_GRACE: Duration = Duration::from_secs(5);
/// Time for clients to take what is on its way to them after the VM has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// Runs a VM from its boot to its end. Both sockets are served from the start.
///
/// The runtime directory says which process this is before anything else happens, and how it ended before that is
/// announced on the control socket. Must be called
/// on a thread that lives as long as the VM: a VMM may die with the thread that started it. If the future is
/// dropped, the VMM is killed.
pub async fn run(
    config: WorkerConfig,
    vmm: Arc<dyn Vmm>,
    control: UnixListener,
    streams: UnixListener,
    confinement: Confinement,
) -> Exited {
    run_until(config, vmm, Outside::default(), control, streams, confinement, std::future::pending()).await
}

/// What a guest reaches beyond its own machine, each served by a thread of its own.
#[derive(Clone, Default)]
pub struct Outside {
    /// The network.
    pub net: Option<NetThread>,
    /// Directories of the host.
    pub mounts: Option<MountThread>,
}

/// As [`run`], with an outside; when `terminate` completes, the guest is stopped with a short grace.
pub async fn run_until(
    config: WorkerConfig,
    vmm: Arc<dyn Vmm>,
    outside: Outside,
    control: UnixListener,
    streams: UnixListener,
    confinement: Confinement,
    terminate: impl Future<Output = ()>,
) -> Exited {
    let runtime_dir = config.vm.runtime_dir.clone();
    // Before anybody is answered and before anything is used up: a daemon that finds no name here finds nothing lost.
    if let Err(e) = notes::write_identity(&runtime_dir, &config.vm.vm_id) {
        tracing::warn!("cannot say who runs this VM, so that a later daemon will stop it: {e}");
    }
    let (requests_tx, requests) = mpsc::channel(REQUESTS);
    let (view_tx, view) = watch::channel(view::View::booting());
    let driver = driver::Driver::new(config, vmm, outside.clone(), requests, view_tx.clone());
    let mut control =
        control::Server::new(control, requests_tx.clone(), view.clone(), outside.net, confinement);
    let mut streams = streams::Server::new(streams, view);
    let termination = async {
        terminate.await;
        tracing::info!("told to end");
        let stop = driver::Request::Stop { grace: TERMINATE_GRACE, reply: None };
        // The driver is polled beside us and takes it.
        let _ = requests_tx.send(stop).await;
        std::future::pending::<()>().await
    };
    let exited = tokio::select! {
        exited = driver.run() => exited,
        () = termination => unreachable!("it waits forever"),
        () = control.accept() => unreachable!("it accepts forever"),
        () = streams.accept() => unreachable!("it accepts forever"),
    };
    tracing::info!(reason = ?exited.reason, "the VM has ended: {}", exited.message);
    if let Err(e) = notes::write_exit(&runtime_dir, &exited) {
        tracing::warn!("cannot leave a note about the end: {e}");
    }
    view_tx.send_modify(|view| view.exited = Some(exited.clone()));
    let drained = async { tokio::join!(control.drain(), streams.drain()) };
    if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
        tracing::debug!("clients that did not take the end in time were cut off");
    }
    exited
}
