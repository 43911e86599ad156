//! Progress: a spinner on a terminal, plain lines everywhere else, so that a long step is never silent.

use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, a running step says so this often.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// One piece of work that the user is told about. Dropped without [`Step::done`], it failed: the error says why.
pub(crate) struct Step {
    label: String,
    started: Instant,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Step {
    /// Announces the work.
    pub(crate) fn start(label: impl Into<String>) -> Step {
        let label = label.into();
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:>4} {wide_msg:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(label.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("· {label} …");
        }
        Step { label, started: Instant::now(), bar, last_line: Mutex::new(Instant::now()) }
    }

    /// Says what is being done right now. Cheap enough to call for every line of a compiler's output.
    pub(crate) fn note(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
            return;
        }
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.elapsed() >= HEARTBEAT {
            *last = Instant::now();
            eprintln!("  {} {:.0} s: {what}", self.label, self.started.elapsed().as_secs_f64());
        }
    }

    /// The work is done; `result` is what came out of it.
    pub(crate) fn done(self, result: impl AsRef<str>) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("✓ {}: {} ({:.1} s)", self.label, result.as_ref(), self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A size for people.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes >= MIB {
        format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB)
    } else {
        format!("{} KiB", bytes.div_ceil(1024))
    }
}
