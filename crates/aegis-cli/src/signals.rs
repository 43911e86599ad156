//! The signals that end a command which has something to clean up.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Kind};

/// Listens for `SIGINT`, `SIGTERM` and `SIGHUP`.
pub(crate) struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    /// From now on these signals no longer end the process. One that our parent told us to ignore, as `nohup`
    /// does, stays ignored.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let ignored = ignored();
        let listen = |kind: SignalKind| -> io::Result<Option<Signal>> {
            let is_ignored = ignored >> (kind.as_raw_value() - 1) & 1 == 1;
            if is_ignored { Ok(None) } else { signal(kind).map(Some) }
        };
        let all = || {
            Ok(Self {
                interrupt: listen(SignalKind::interrupt())?,
                terminate: listen(SignalKind::terminate())?,
                hangup: listen(SignalKind::hangup())?,
            })
        };
        all().map_err(|e: io::Error| CliError::failure("cannot listen for signals").because(&e))
    }

    /// The next signal, as the error that ends the command. Cancel safe.
    pub(crate) async fn next(&mut self) -> CliError {
        let kind = tokio::select! {
            () = arrival(&mut self.interrupt) => SignalKind::interrupt(),
            () = arrival(&mut self.terminate) => SignalKind::terminate(),
            () = arrival(&mut self.hangup) => SignalKind::hangup(),
        };
        let number = u8::try_from(kind.as_raw_value()).expect("these signals have small numbers");
        CliError::new(Kind::Signal(number), "ended by a signal")
    }
}

async fn arrival(signal: &mut Option<Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Bit N - 1 says that signal N is ignored. Nothing counts as ignored where the system does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
