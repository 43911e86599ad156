//! Keeps the values of secrets out of a log.
//!
//! Output comes in lines, and long or unfinished lines in pieces. A piece may end in the middle of a value: as much of its
//! end as may be the beginning of one is held back until the next piece of the same stream is there, or its end. What is held
//! back is not counted as stored, so that after a crash of the daemon the guest says it again.
//!
//! **Limits:** values, and lines of values, shorter than [`VALUE_MIN`] are not masked: they would be found everywhere. Of other
//! forms of a value only standard base64 is known.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use aegis_api::{LogEntry, LogSource, LogStream};
use aegis_types::{SecretBytes, VmId};
use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::record::Origin;

/// Shortest value that is masked, in bytes.
pub(crate) const VALUE_MIN: usize = 6;
const MASK: &[u8] = b"***";

/// What must not be in a log.
#[derive(Clone, Default)]
pub(crate) enum Mask {
    /// Anything may.
    #[default]
    Nothing,
    /// These values.
    Values(Arc<Patterns>),
    /// Values that cannot be known: no output at all.
    Everything,
}

impl Mask {
    /// Of these values.
    pub(crate) fn of(values: &[SecretBytes]) -> Self {
        Patterns::new(values).map_or(Self::Nothing, |patterns| Self::Values(Arc::new(patterns)))
    }
}

/// What is looked for.
pub(crate) struct Patterns {
    all: AhoCorasick,
    beginnings: Vec<Beginning>,
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patterns({})", self.beginnings.len())
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Values(_) => "Values",
            Self::Everything => "Everything",
        })
    }
}

impl Patterns {
    /// `None` if there is nothing to look for.
    fn new(values: &[SecretBytes]) -> Option<Self> {
        let mut wanted: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        let mut add = |bytes: &[u8]| {
            if bytes.len() >= VALUE_MIN && !wanted.iter().any(|known| known.as_slice() == bytes) {
                wanted.push(Zeroizing::new(bytes.to_vec()));
            }
        };
        for value in values {
            let value = value.expose();
            // A log has lines, so that a value of several is never in one piece.
            for line in value.split(|&b| b == b'\n') {
                add(line.strip_suffix(b"\r").unwrap_or(line));
            }
            // Whole groups of three: what stands behind the value changes the rest.
            let text = Zeroizing::new(STANDARD.encode(&value[..value.len() - value.len() % 3]));
            add(text.as_bytes());
        }
        if wanted.is_empty() {
            return None;
        }
        let all = AhoCorasick::new(wanted.iter().map(|bytes| bytes.as_slice()));
        let all = all.expect("what is injected is far smaller than what the automaton takes");
        Some(Self { all, beginnings: wanted.into_iter().map(Beginning::new).collect() })
    }

    /// Where values are: in order, and apart from each other. The first `masked` bytes are part of one.
    fn find(&self, bytes: &[u8], masked: usize) -> Vec<(usize, usize)> {
        let mut spans: Vec<(usize, usize)> = Vec::new();
        if masked > 0 {
            spans.push((0, masked));
        }
        // In the order of their ends.
        for found in self.all.find_overlapping_iter(bytes) {
            let (mut start, mut end) = (found.start(), found.end());
            while let Some(&(before, until)) = spans.last()
                && until > start
            {
                (start, end) = (start.min(before), end.max(until));
                spans.pop();
            }
            spans.push((start, end));
        }
        spans
    }

    /// Length of the longest end that is the beginning of a value, but not all of it.
    fn unfinished(&self, bytes: &[u8]) -> usize {
        self.beginnings.iter().map(|beginning| beginning.at_end(bytes)).max().unwrap_or(0)
    }

    /// The bytes with masks, up to where something is held back; from there on, and how much of that is masked already.
    fn apply(&self, bytes: &[u8], masked: usize, unfinished: bool) -> (Vec<u8>, usize, usize) {
        let end = bytes.len() - if unfinished { self.unfinished(bytes) } else { 0 };
        let mut shown = Vec::with_capacity(end);
        let (mut at, mut masked_beyond) = (0, 0);
        for (from, until) in self.find(bytes, masked) {
            // All that was held back and is held back again keeps its mask.
            if from >= end && (from > 0 || masked == 0) {
                break;
            }
            shown.extend_from_slice(&bytes[at..from]);
            // What begins in what was held back has its mask already.
            if from > 0 || masked == 0 {
                shown.extend_from_slice(MASK);
            }
            at = until.min(end);
            masked_beyond = until.saturating_sub(end);
        }
        shown.extend_from_slice(&bytes[at..end]);
        (shown, end, masked_beyond)
    }
}

/// A value, and by how much shorter beginnings of it each of its beginnings ends.
struct Beginning {
    value: Zeroizing<Vec<u8>>,
    shorter: Vec<usize>,
}

impl Beginning {
    fn new(value: Zeroizing<Vec<u8>>) -> Self {
        let mut shorter = vec![0; value.len()];
        let mut length = 0;
        for at in 1..value.len() {
            while length > 0 && value[at] != value[length] {
                length = shorter[length - 1];
            }
            length += usize::from(value[at] == value[length]);
            shorter[at] = length;
        }
        Self { value, shorter }
    }

    /// Takes time in proportion to the bytes, whatever they are.
    fn at_end(&self, bytes: &[u8]) -> usize {
        let mut length = 0;
        for &byte in &bytes[bytes.len().saturating_sub(self.value.len() - 1)..] {
            while length > 0 && byte != self.value[length] {
                length = self.shorter[length - 1];
            }
            length += usize::from(byte == self.value[length]);
        }
        length
    }
}

/// One stream of output: of the command, or of an exec.
type Stream = (LogSource, Option<String>, LogStream);

/// The end of a piece.
struct Held {
    bytes: Vec<u8>,
    /// So many of them have their mask already.
    masked: usize,
    /// The piece that they begin in, if pieces are counted.
    seq: Option<u64>,
    /// What they came with.
    entry: LogEntry,
}

/// Masks one log.
#[derive(Default)]
pub(super) struct Masker {
    mask: Mask,
    held: HashMap<Stream, Held>,
    /// The newest piece of the command that came, whether it is stored or held back.
    newest: Option<Origin>,
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Masker({:?}, {} held)", self.mask, self.held.len())
    }
}

/// An entry, and how far the output of its VM is stored with it.
pub(super) type Counted = (LogEntry, Option<Origin>);

impl Masker {
    /// From now on. Call [`Masker::flush`] before.
    pub(super) fn set(&mut self, mask: Mask) {
        self.mask = mask;
        self.newest = None;
    }

    /// The newest piece of this VM that came, if there is one.
    pub(super) fn newest(&self, vm: &VmId) -> Option<u64> {
        self.newest.as_ref().filter(|newest| newest.vm == *vm).map(|newest| newest.seq)
    }

    /// `None`: all of it is held back.
    pub(super) fn take(&mut self, entry: LogEntry, origin: Option<Origin>) -> Option<Counted> {
        let patterns = match &self.mask {
            Mask::Nothing => return Some((entry, origin)),
            // It says what AegisVM did, and may quote what it knows of nobody.
            Mask::Everything if entry.source == LogSource::System => return Some((entry, origin)),
            Mask::Everything => return Some((rewritten(&entry, MASK.to_vec(), entry.partial), origin)),
            Mask::Values(patterns) => Arc::clone(patterns),
        };
        let content = entry.bytes();
        let content = if entry.partial { &content[..] } else { &content[..content.len() - 1] };
        if entry.source == LogSource::System {
            let (shown, ..) = patterns.apply(content, 0, false);
            let line = String::from_utf8_lossy(&shown).into_owned();
            return Some((LogEntry { line, ..entry }, origin));
        }
        self.newest = origin.clone().or(self.newest.take());
        let stream = (entry.source, entry.exec_id.clone(), entry.stream);
        let earlier = self.held.remove(&stream);
        let (mut bytes, masked, earlier_seq) = match earlier {
            Some(Held { bytes, masked, seq, .. }) => (bytes, masked, seq),
            None => (Vec::new(), 0, None),
        };
        let earlier = bytes.len();
        bytes.extend_from_slice(content);
        let (shown, end, masked) = patterns.apply(&bytes, masked, entry.partial);
        if end < bytes.len() {
            let seq = if end < earlier { earlier_seq } else { origin.as_ref().map(|origin| origin.seq) };
            let held = Held { bytes: bytes.split_off(end), masked, seq, entry: entry.clone() };
            self.held.insert(stream, held);
        }
        if shown.is_empty() && entry.partial {
            return None;
        }
        let shown = if shown == content { entry } else { rewritten(&entry, shown, entry.partial) };
        Some((shown, origin.map(|origin| self.stored(origin))))
    }

    /// How far output is stored, in view of what is held back.
    fn stored(&self, origin: Origin) -> Origin {
        let held = self.held.values().filter_map(|held| held.seq).min();
        let seq = held.map_or(origin.seq, |held| origin.seq.min(held.saturating_sub(1)));
        Origin { seq, ..origin }
    }

    /// Something that is held back of a stream that has ended: of this exec, or of the command. `None` when that is all.
    pub(super) fn flush(&mut self, exec: Option<&str>) -> Option<Counted> {
        let over = |stream: &&Stream| stream.1.as_deref() == exec;
        let stream = self.held.keys().find(over)?.clone();
        let Held { bytes, masked, entry, .. } = self.held.remove(&stream)?;
        // Its mask is there; the rest was no value after all.
        let shown = rewritten(&entry, bytes[masked..].to_vec(), true);
        let newest = self.newest.clone().filter(|_| exec.is_none());
        Some((shown, newest.map(|newest| self.stored(newest))))
    }
}

fn rewritten(entry: &LogEntry, bytes: Vec<u8>, partial: bool) -> LogEntry {
    let new =
        LogEntry::output(entry.ts, entry.instance_id.clone(), entry.source, entry.stream, bytes, partial);
    LogEntry { exec_id: entry.exec_id.clone(), ..new }
}

#[cfg(test)]
#[path = "mask_tests.rs"]
mod tests;
