//! Words of the harness on the console of the VM, where the host keeps the last of them.
//!
//! A subscriber of our own: the usual one is a quarter of a megabyte, and every byte of the harness is unpacked at
//! each cold boot.

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const CONSOLE: &str = "/dev/console";
/// Lines in each [`PERIOD`]; more are counted and left out, because a serial console is slow.
const LINES_MAX: u32 = 50;
const PERIOD: Duration = Duration::from_secs(10);

/// Writes a line at once, whatever else happens.
pub(crate) fn write(text: &str) {
    // Non-blocking: a console that nobody reads must not stop PID 1.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).expect("flags of open(2) are an int");
    if let Ok(mut console) = OpenOptions::new().write(true).custom_flags(flags).open(CONSOLE) {
        let _ = console.write_all(format!("aegis-harness: {text}\n").as_bytes());
    }
}

/// Shows events of level info and above.
pub(crate) struct Console {
    rate: Mutex<Rate>,
}

struct Rate {
    since: Instant,
    written: u32,
    left_out: u32,
}

impl Console {
    pub(crate) fn new() -> Self {
        Self { rate: Mutex::new(Rate { since: Instant::now(), written: 0, left_out: 0 }) }
    }
}

impl Rate {
    /// Whether a line may be written, and how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        if now.duration_since(self.since) >= PERIOD {
            self.since = now;
            self.written = 0;
        }
        if self.written == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // Spans are not shown; all share one id.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let Some(left_out) = self.rate.lock().expect("no panic while held").admit(Instant::now()) else {
            return;
        };
        if left_out > 0 {
            write(&format!("{left_out} lines were left out"));
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        write(&format!("{}:{}", event.metadata().level(), line.0));
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let start = Instant::now();
        let mut rate = Rate { since: start, written: 0, left_out: 0 };
        let admitted = (0..LINES_MAX + 7).filter(|_| rate.admit(start).is_some()).count();
        assert_eq!(admitted, LINES_MAX as usize);
        assert_eq!(rate.admit(start + PERIOD), Some(7));
        assert_eq!(rate.admit(start + PERIOD), Some(0));
    }
}
