//! Starts and reaps processes. PID 1 inherits every orphan of the machine, so one place waits for all of them and
//! hands the status of those that somebody asked for to whoever did.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use aegis_types::ExitStatus;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::warn;

use crate::input::Input;
use crate::output::Output;
use crate::sys::{ChildStreams, Launch, Sys};

/// A process that was started.
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) input: Input,
    pub(crate) output: Output,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u32, oneshot::Sender<ExitStatus>>,
    /// Processes that are being started. The lock is not held meanwhile: a program may have to be read from a file system
    /// that this process serves.
    starting: usize,
    /// What ended while its pid may not have been known here yet.
    unclaimed: HashMap<u32, ExitStatus>,
}

pub(crate) struct Reaper {
    sys: Arc<dyn Sys>,
    state: Mutex<State>,
    none_left: watch::Sender<bool>,
}

impl Reaper {
    pub(crate) fn new(sys: Arc<dyn Sys>) -> Self {
        Self { sys, state: Mutex::default(), none_left: watch::Sender::new(true) }
    }

    /// Starts a process. Blocks until its program was read, so it belongs on a thread of its own.
    ///
    /// # Errors
    /// That of posix_spawn(3).
    pub(crate) fn start(&self, launch: &Launch) -> io::Result<Started> {
        self.lock().starting += 1;
        let spawned = self.sys.spawn(launch);
        let mut state = self.lock();
        state.starting -= 1;
        let started = spawned.and_then(|child| {
            self.none_left.send_replace(false);
            let (ended, exit) = oneshot::channel();
            match state.unclaimed.remove(&child.pid) {
                // The receiver is `exit`.
                Some(status) => drop(ended.send(status)),
                None => drop(state.waiting.insert(child.pid, ended)),
            }
            let (input, output) = match child.streams {
                ChildStreams::Pipes { stdin, stdout, stderr } => {
                    (Input::pipe(stdin)?, Output::pipes(stdout, stderr, exit)?)
                }
                ChildStreams::Terminal(master) => {
                    (Input::terminal(&master)?, Output::terminal(master, exit)?)
                }
            };
            Ok(Started { pid: child.pid, input, output })
        });
        if state.starting == 0 {
            state.unclaimed.clear();
        }
        started
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Collects what has ended.
    fn reap(&self) {
        let mut state = self.lock();
        let reaped = self.sys.reap();
        for (pid, status) in reaped.ended {
            match state.waiting.remove(&pid) {
                // Nobody waits for a process whose exec was given up.
                Some(ended) => drop(ended.send(status)),
                None if state.starting > 0 => drop(state.unclaimed.insert(pid, status)),
                None => {}
            }
        }
        self.none_left.send_replace(reaped.none_left && state.starting == 0);
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
