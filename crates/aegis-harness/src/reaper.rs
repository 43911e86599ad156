//! Starts and reaps processes. PID 1 inherits every orphan of the machine, so one place waits for all of them and
//! hands the status of those that somebody asked for to whoever did.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use aegis_types::ExitStatus;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::warn;

use crate::output::Output;
use crate::sys::{Launch, Sys};

/// A process that was started.
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) stdin: Option<std::os::fd::OwnedFd>,
    pub(crate) output: Output,
}

pub(crate) struct Reaper {
    sys: Arc<dyn Sys>,
    /// Held while a process is started: one that ends at once is reaped only after it is known here.
    waiting: Mutex<HashMap<u32, oneshot::Sender<ExitStatus>>>,
    none_left: watch::Sender<bool>,
}

impl Reaper {
    pub(crate) fn new(sys: Arc<dyn Sys>) -> Self {
        Self { sys, waiting: Mutex::default(), none_left: watch::Sender::new(true) }
    }

    /// Starts a process.
    ///
    /// # Errors
    /// That of posix_spawn(3).
    pub(crate) fn start(&self, launch: &Launch) -> io::Result<Started> {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        let child = self.sys.spawn(launch)?;
        self.none_left.send_replace(false);
        let (ended, exit) = oneshot::channel();
        waiting.insert(child.pid, ended);
        let output = Output::new(child.stdout, child.stderr, exit)?;
        Ok(Started { pid: child.pid, stdin: child.stdin, output })
    }

    /// Collects what has ended.
    fn reap(&self) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        let reaped = self.sys.reap();
        for (pid, status) in reaped.ended {
            if let Some(ended) = waiting.remove(&pid) {
                // Nobody waits for a process whose exec was given up.
                let _ = ended.send(status);
            }
        }
        self.none_left.send_replace(reaped.none_left);
    }

    /// Reaps for ever.
    pub(crate) async fn run(&self) {
        let mut child_ended = match signal(SignalKind::child()) {
            Ok(stream) => stream,
            Err(error) => {
                warn!("cannot listen for SIGCHLD: {error}");
                return;
            }
        };
        loop {
            self.reap();
            // Signals that arrive while reaping are merged into one wake-up; reaping again is then enough.
            if child_ended.recv().await.is_none() {
                return;
            }
        }
    }

    /// Waits until no process is left.
    pub(crate) async fn none_left(&self) {
        // Looks for itself first: the flag is as old as the last signal.
        self.reap();
        let mut none_left = self.none_left.subscribe();
        // The sender lives as long as `self`.
        let _ = none_left.wait_for(|none| *none).await;
    }
}
