//! The bounded memory of recent output.

use std::collections::VecDeque;

use aegis_proto::lines::OutputLine;
use aegis_proto::logs::{LogEvent, LogLine, OutputStream};

/// Bounds of a ring. The oldest lines give way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) lines: usize,
}

/// What the ring keeps of each boot.
pub(crate) const BOUNDS: Bounds = Bounds { bytes: 8 << 20, lines: 50_000 };

pub(crate) struct LogRing {
    bounds: Bounds,
    /// Sequence numbers are consecutive; each with the number of bytes pushed up to its end.
    lines: VecDeque<(LogLine, u64)>,
    next_seq: u64,
    bytes: usize,
    bytes_ever: u64,
}

impl LogRing {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, lines: VecDeque::new(), next_seq: 1, bytes: 0, bytes_ever: 0 }
    }

    /// Adds a line and gives up as many old ones as that takes.
    pub(crate) fn push(&mut self, stream: OutputStream, time_unix_ns: u64, line: OutputLine) {
        let length = line.bytes.len();
        self.bytes += length;
        self.bytes_ever += length as u64;
        let OutputLine { bytes, partial } = line;
        let line = LogLine { seq: self.next_seq, time_unix_ns, stream, partial, bytes };
        self.lines.push_back((line, self.bytes_ever));
        self.next_seq += 1;
        while self.bytes > self.bounds.bytes || self.lines.len() > self.bounds.lines {
            let Some((dropped, _)) = self.lines.pop_front() else { break };
            self.bytes -= dropped.bytes.len();
        }
    }

    /// The highest sequence number so far; 0 when there is no line.
    pub(crate) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// What a reader that has everything up to `seq` gets next, and its position afterwards.
    pub(crate) fn after(&self, seq: u64) -> Option<(LogEvent, u64)> {
        let first = self.next_seq - self.lines.len() as u64;
        if seq + 1 < first {
            return Some((LogEvent::Dropped { count: first - 1 - seq }, first - 1));
        }
        let (line, _) = self.get(seq + 1)?;
        Some((LogEvent::Line(line.clone()), line.seq))
    }

    fn get(&self, seq: u64) -> Option<&(LogLine, u64)> {
        let first = self.next_seq - self.lines.len() as u64;
        self.lines.get(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    /// A reader at `seq` is so far behind that lines will soon be given up before it sees them.
    pub(crate) fn is_nearly_lost(&self, seq: u64) -> bool {
        let unread_bytes = match self.get(seq) {
            Some((_, end)) => self.bytes_ever - end,
            None if seq >= self.last_seq() => 0,
            None => self.bytes as u64,
        };
        let unread_lines = self.last_seq().saturating_sub(seq);
        unread_bytes > self.bounds.bytes as u64 / 4 * 3 || unread_lines > self.bounds.lines as u64 / 4 * 3
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn push(ring: &mut LogRing, bytes: usize) {
        ring.push(OutputStream::Stdout, 0, OutputLine { bytes: vec![b'x'; bytes], partial: false });
    }

    fn ring(bytes: usize, lines: usize) -> LogRing {
        LogRing::new(Bounds { bytes, lines })
    }

    #[test]
    fn a_reader_gets_every_line_once() {
        let mut ring = ring(100, 100);
        assert_eq!(ring.after(0), None);
        (1..=5).for_each(|n| push(&mut ring, n));
        let mut at = 2;
        let mut lengths = Vec::new();
        while let Some((LogEvent::Line(line), next)) = ring.after(at) {
            lengths.push(line.bytes.len());
            at = next;
        }
        assert_eq!((lengths, at), (vec![3, 4, 5], 5));
    }

    #[test]
    fn lines_given_up_are_counted() {
        let mut ring = ring(100, 3);
        (0..10).for_each(|_| push(&mut ring, 1));
        assert_eq!(ring.after(0), Some((LogEvent::Dropped { count: 7 }, 7)));
        assert!(matches!(ring.after(7), Some((LogEvent::Line(line), 8)) if line.seq == 8));
        assert_eq!(ring.after(10), None);
    }

    #[test]
    fn bytes_are_bounded_even_by_one_large_line() {
        let mut ring = ring(10, 100);
        push(&mut ring, 6);
        push(&mut ring, 6);
        assert_eq!((ring.lines.len(), ring.bytes), (1, 6));
        push(&mut ring, 11);
        assert_eq!((ring.lines.len(), ring.bytes), (0, 0));
        assert_eq!(ring.after(0), Some((LogEvent::Dropped { count: 3 }, 3)));
    }

    #[test]
    fn a_reader_is_warned_by_what_it_has_not_read() {
        let mut ring = ring(100, 1000);
        (0..80).for_each(|_| push(&mut ring, 1));
        assert!(ring.is_nearly_lost(0));
        assert!(!ring.is_nearly_lost(10));
        assert!(!ring.is_nearly_lost(80));
    }
}
