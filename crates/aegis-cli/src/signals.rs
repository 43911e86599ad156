//! The signals that end a command which has something to clean up.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Kind};

/// Listens for `SIGINT`, `SIGTERM`, `SIGQUIT` and `SIGHUP`.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// From now on these signals no longer end the process. A hang-up that `nohup` told us to ignore stays ignored.
    /// An interrupt does not: shells ignore it for what scripts start in the background, and yet somebody who sends
    /// it means us.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen = || {
            let hangup =
                if is_ignored(SignalKind::hangup()) { None } else { Some(signal(SignalKind::hangup())?) };
            let interrupt = signal(SignalKind::interrupt())?;
            let terminate = signal(SignalKind::terminate())?;
            Ok(Self { interrupt, terminate, quit: signal(SignalKind::quit())?, hangup })
        };
        listen().map_err(|e: io::Error| CliError::failure("cannot listen for signals").because(&e))
    }

    /// The next signal, as the error that ends the command. Cancel safe.
    pub(crate) async fn next(&mut self) -> CliError {
        let kind = tokio::select! {
            () = arrival(Some(&mut self.interrupt)) => SignalKind::interrupt(),
            () = arrival(Some(&mut self.terminate)) => SignalKind::terminate(),
            () = arrival(Some(&mut self.quit)) => SignalKind::quit(),
            () = arrival(self.hangup.as_mut()) => SignalKind::hangup(),
        };
        let number = u8::try_from(kind.as_raw_value()).expect("these signals have small numbers");
        CliError::new(Kind::Signal(number), "ended by a signal")
    }
}

async fn arrival(signal: Option<&mut Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Where the system does not say, nothing is ignored.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // Bit N - 1 stands for signal N.
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
