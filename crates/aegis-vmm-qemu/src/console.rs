//! What the guest and the VMM write for people: kept within bounds, and without control characters, because
//! it ends up on terminals.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Name of the console log in the runtime directory.
pub const CONSOLE_FILE: &str = "console.log";
/// Bytes of console that are kept at least; the file is cut back to this when it has doubled.
const KEEP_BYTES: u64 = 256 * 1024;
/// Lines that an error message shows.
const TAIL_LINES: usize = 40;
/// Longer lines are cut in pieces.
const LINE_MAX: usize = 1024;
const READ_BYTES: usize = 4096;

/// The last lines of some output. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().expect("no panic while held");
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// The lines, oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no panic while held").iter().cloned().collect()
    }
}

/// Reads output to its end. Every line goes to the tail and, if there is one, to the log.
pub(crate) async fn pump<R: AsyncRead + Unpin>(mut output: R, tail: Tail, mut log: Option<Log>) {
    let mut cleaner = Cleaner::default();
    let mut buffer = [0; READ_BYTES];
    // An output that cannot be read has ended.
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        for &byte in &buffer[..count] {
            if let Some(line) = cleaner.push(byte) {
                keep(&line, &tail, &mut log);
            }
        }
    }
    if let Some(line) = cleaner.finish() {
        keep(&line, &tail, &mut log);
    }
}

fn keep(line: &str, tail: &Tail, log: &mut Option<Log>) {
    tail.push(line);
    if let Some(open) = log
        && let Err(e) = open.append(line)
    {
        tracing::warn!("the console log ends here: {e}");
        *log = None;
    }
}

/// Cuts bytes into lines and removes control characters and terminal sequences.
#[derive(Debug, Default)]
struct Cleaner {
    line: Vec<u8>,
    escape: Escape,
}

/// Where in a terminal sequence the next byte is.
#[derive(Debug, Clone, Copy, Default)]
enum Escape {
    #[default]
    Outside,
    /// After ESC.
    Start,
    /// In `ESC [ … letter`.
    Csi,
    /// In `ESC ] … BEL`, and the like.
    Text,
}

impl Cleaner {
    fn push(&mut self, byte: u8) -> Option<String> {
        self.escape = match (self.escape, byte) {
            // A newline ends a sequence, so that a broken one cannot hide the rest.
            (_, b'\n') => {
                self.escape = Escape::Outside;
                return self.take();
            }
            (_, 0x1b) => Escape::Start,
            (Escape::Start, b'[') => Escape::Csi,
            (Escape::Start, b']' | b'P' | b'X' | b'^' | b'_') => Escape::Text,
            // Intermediate bytes, as in `ESC ( B`.
            (Escape::Start, 0x20..=0x2f) => Escape::Start,
            (Escape::Start, _) => Escape::Outside,
            (Escape::Csi, 0x40..=0x7e) => Escape::Outside,
            (Escape::Csi, _) => Escape::Csi,
            (Escape::Text, 0x07) => Escape::Outside,
            (Escape::Text, _) => Escape::Text,
            (Escape::Outside, _) => {
                self.line.push(byte);
                Escape::Outside
            }
        };
        (self.line.len() == LINE_MAX).then(|| self.take()).flatten()
    }

    fn take(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&bytes);
        Some(text.chars().filter(|&c| c == '\t' || !c.is_control()).collect::<String>().trim_end().to_owned())
    }

    fn finish(mut self) -> Option<String> {
        self.take().filter(|line| !line.is_empty())
    }
}

/// A log file that keeps its newest part.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    /// Opens the log of a runtime directory. What an earlier attempt to boot wrote stays.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(CONSOLE_FILE);
        let file = Self::options().append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size })
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.create(true).mode(0o600);
        options
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.size += line.len() as u64 + 1;
        if self.size >= 2 * KEEP_BYTES { self.cut() } else { Ok(()) }
    }

    /// Replaces the file by its newest part. A reader sees the old file or the new one, never half of one.
    fn cut(&mut self) -> io::Result<()> {
        let all = fs::read(&self.path)?;
        let from = all.len().saturating_sub(usize::try_from(KEEP_BYTES).expect("fits"));
        let line_start = all[from..].iter().position(|&b| b == b'\n').map_or(from, |at| from + at + 1);
        let fresh = self.path.with_extension("log.new");
        Self::options().write(true).truncate(true).open(&fresh)?.write_all(&all[line_start..])?;
        fs::rename(&fresh, &self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.size = (all.len() - line_start) as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    async fn lines_of(bytes: &[u8]) -> Vec<String> {
        let tail = Tail::default();
        pump(bytes, tail.clone(), None).await;
        tail.lines()
    }

    #[tokio::test]
    async fn control_characters_and_terminal_sequences_are_removed() {
        let text = b"\x1bc\x1b[?7l\x1b[2Jplain \x1b[1;31mred\x1b[0m\r\n\x1b]0;title\x07a\x00b\x08\tc\xff\n\xc2\x9b31mx\n\x1b]open\nend";
        assert_eq!(lines_of(text).await, ["plain red", "ab\tc\u{fffd}", "31mx", "", "end"]);
    }

    #[tokio::test]
    async fn the_tail_keeps_the_last_lines() {
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        let lines = lines_of(text.as_bytes()).await;
        assert_eq!((lines.len(), lines[0].as_str(), lines[39].as_str()), (TAIL_LINES, "60", "99"));
    }

    #[tokio::test]
    async fn endless_lines_are_cut() {
        let lines = lines_of(&vec![b'x'; 3 * LINE_MAX + 5]).await;
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE_MAX, LINE_MAX, LINE_MAX, 5]);
    }

    #[tokio::test]
    async fn the_log_stays_bounded_and_keeps_the_newest_part() {
        let dir = tempfile::tempdir().unwrap();
        let text: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
        let log = Log::open(dir.path()).unwrap();
        pump(text.as_bytes(), Tail::default(), Some(log)).await;
        let kept = fs::read_to_string(dir.path().join(CONSOLE_FILE)).unwrap();
        let size = kept.len() as u64;
        assert!((KEEP_BYTES - 100..2 * KEEP_BYTES).contains(&size), "{size}");
        assert!(kept.starts_with("line ") && kept.ends_with("line 99999\n"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
