//! The log of decisions, in two files that take turns.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aegis_types::NetEvent;
use jiff::Timestamp;
use tokio::time::Instant;

/// Name of the file that is written to: one [`NetEvent`] as JSON on each line.
pub const LOG_FILE: &str = "log.ndjson";
/// Name of the file before it.
pub const OLD_LOG_FILE: &str = "log.1.ndjson";
/// Length at which a file becomes the old one, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Events that may be logged at once, and those that may be on each second after that.
const BURST: f64 = 200.0;
const EACH_SECOND: f64 = 50.0;

/// See the module.
pub(crate) struct Journal {
    directory: PathBuf,
    file: Option<(File, u64)>,
    /// Events that may still be logged now.
    allowance: f64,
    counted: Instant,
    left_out: u64,
    complained: bool,
}

impl Journal {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            file: None,
            allowance: BURST,
            counted: Instant::now(),
            left_out: 0,
            complained: false,
        }
    }

    /// Logs a decision, unless there were too many.
    pub(crate) fn note(
        &mut self,
        protocol: &str,
        destination: String,
        name: Option<&str>,
        reason: Option<String>,
    ) {
        let now = Instant::now();
        let passed = now.duration_since(std::mem::replace(&mut self.counted, now)).as_secs_f64();
        self.allowance = (self.allowance + passed * EACH_SECOND).min(BURST);
        if self.allowance < 1.0 {
            self.left_out += 1;
            return;
        }
        self.allowance -= 1.0;
        let event = NetEvent {
            ts: Timestamp::now(),
            allowed: reason.is_none(),
            protocol: protocol.to_owned(),
            destination,
            name: name.map(str::to_owned),
            reason,
            left_out: std::mem::take(&mut self.left_out),
        };
        if let Err(error) = self.write(&event)
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(%error, directory = %self.directory.display(), "the log of the network cannot be written");
        }
    }

    fn write(&mut self, event: &NetEvent) -> io::Result<()> {
        let path = self.directory.join(LOG_FILE);
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        if self.file.as_ref().is_some_and(|(_, length)| *length >= FILE_MAX) {
            self.file = None;
            fs::rename(&path, self.directory.join(OLD_LOG_FILE))?;
        }
        let (file, length) = match &mut self.file {
            Some(open) => open,
            closed => {
                let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
                let length = file.metadata()?.len();
                closed.insert((file, length))
            }
        };
        file.write_all(&line)?;
        *length += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Duration;

    fn lines(path: &Path) -> Vec<NetEvent> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_and_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path());
        for n in 0..1000 {
            journal.note("tcp", format!("10.0.0.1:{n}"), None, Some("private address".to_owned()));
        }
        assert_eq!(lines(&dir.path().join(LOG_FILE)).len(), 200);
        tokio::time::advance(Duration::from_secs(1)).await;
        journal.note("dns", "a.example".to_owned(), None, None);
        let last = lines(&dir.path().join(LOG_FILE)).pop().unwrap();
        assert_eq!((last.left_out, last.allowed, last.destination.as_str()), (800, true, "a.example"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_files_stay_small_and_the_newest_events_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path());
        for n in 0..20_000 {
            tokio::time::advance(Duration::from_millis(20)).await;
            journal.note("tcp", format!("{n}"), Some(&"n".repeat(200)), None);
        }
        let (new, old) = (dir.path().join(LOG_FILE), dir.path().join(OLD_LOG_FILE));
        for path in [&new, &old] {
            assert!(fs::metadata(path).unwrap().len() < FILE_MAX + 1000);
        }
        assert_eq!(lines(&new).last().unwrap().destination, "19999");
    }
}
