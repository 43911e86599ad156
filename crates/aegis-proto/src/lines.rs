//! Two ways of cutting bytes into lines: [`LineDecoder`] for protocol messages, where an over-long line is an
//! attack, and [`LineSplitter`] for process output, where it is a fact of life.

use std::mem;

/// A peer sent a line longer than the agreed maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line longer than {max} bytes")]
pub struct LineTooLong {
    /// The bound, in bytes without the newline.
    pub max: usize,
}

/// Reassembles newline-terminated messages of at most `max` bytes.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    scanned: usize,
    max: usize,
}

impl LineDecoder {
    /// A decoder for lines of at most `max` bytes (newline not counted).
    pub fn new(max: usize) -> Self {
        Self { buffer: Vec::new(), scanned: 0, max }
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next complete line without its newline.
    ///
    /// # Errors
    /// [`LineTooLong`] as soon as the bound is known to be exceeded; the stream cannot be used any more.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let newline = self.buffer[self.scanned..].iter().position(|&b| b == b'\n');
        match newline {
            Some(at) if self.scanned + at <= self.max => {
                let rest = self.buffer.split_off(self.scanned + at + 1);
                let mut line = mem::replace(&mut self.buffer, rest);
                line.pop();
                self.scanned = 0;
                Ok(Some(line))
            }
            None if self.buffer.len() <= self.max => {
                self.scanned = self.buffer.len();
                Ok(None)
            }
            _ => Err(LineTooLong { max: self.max }),
        }
    }

    /// Bytes received after the last complete line, for handing over to another protocol.
    pub fn into_rest(self) -> Vec<u8> {
        self.buffer
    }
}

/// The longest line that process output is cut into, in bytes.
pub const OUTPUT_LINE_MAX: usize = 64 * 1024;

/// One piece of process output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputLine {
    /// The bytes, without the newline.
    pub bytes: Vec<u8>,
    /// No newline followed: the line was longer than [`OUTPUT_LINE_MAX`], or the output ended inside it.
    pub partial: bool,
}

/// Cuts process output into lines of at most [`OUTPUT_LINE_MAX`] bytes and never loses or blocks a byte.
#[derive(Debug, Default)]
pub struct LineSplitter {
    buffer: Vec<u8>,
}

impl LineSplitter {
    /// Adds output and returns the pieces that are complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<OutputLine> {
        let mut lines = Vec::new();
        while let Some(&first) = bytes.first() {
            let room = OUTPUT_LINE_MAX - self.buffer.len();
            if room == 0 && first != b'\n' {
                lines.push(self.take(true));
                continue;
            }
            // One byte more than fits: a newline right behind a full buffer belongs to its line.
            match bytes.iter().take(room + 1).position(|&b| b == b'\n') {
                Some(at) => {
                    self.buffer.extend_from_slice(&bytes[..at]);
                    lines.push(self.take(false));
                    bytes = &bytes[at + 1..];
                }
                None => {
                    let taken = room.min(bytes.len());
                    self.buffer.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                }
            }
        }
        lines
    }

    fn take(&mut self, partial: bool) -> OutputLine {
        OutputLine { bytes: mem::take(&mut self.buffer), partial }
    }

    /// Takes what is left when the output ends, or when a reader should see an unfinished line now.
    pub fn flush(&mut self) -> Option<OutputLine> {
        (!self.buffer.is_empty()).then(|| self.take(true))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decoder_finds_lines_across_pushes() {
        let mut d = LineDecoder::new(5);
        d.push(b"ab");
        assert_eq!(d.next_line(), Ok(None));
        d.push(b"c\n\n12345\nrest");
        assert_eq!(d.next_line(), Ok(Some(b"abc".to_vec())));
        assert_eq!(d.next_line(), Ok(Some(vec![])));
        assert_eq!(d.next_line(), Ok(Some(b"12345".to_vec())));
        assert_eq!(d.next_line(), Ok(None));
        assert_eq!(d.into_rest(), b"rest");
    }

    #[test]
    fn decoder_refuses_long_lines_with_and_without_newline() {
        let mut d = LineDecoder::new(5);
        d.push(b"123456");
        assert_eq!(d.next_line(), Err(LineTooLong { max: 5 }));
        let mut d = LineDecoder::new(5);
        d.push(b"123456\n");
        assert_eq!(d.next_line(), Err(LineTooLong { max: 5 }));
    }

    #[test]
    fn a_line_of_exactly_the_maximum_is_whole() {
        let mut s = LineSplitter::default();
        let mut text = vec![b'x'; OUTPUT_LINE_MAX];
        assert!(s.push(&text).is_empty());
        let lines = s.push(b"\n");
        assert_eq!(lines.len(), 1);
        assert!(!lines[0].partial && lines[0].bytes == text);
        text.push(b'\n');
        assert_eq!(s.push(&text).len(), 1);
        assert_eq!(s.flush(), None);
    }

    proptest! {
        #[test]
        fn splitting_keeps_every_byte(
            chunks in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..50),
                    (1usize..200_000).prop_map(|n| vec![b'x'; n]),
                    Just(b"\n".to_vec()),
                ],
                0..20,
            )
        ) {
            let mut s = LineSplitter::default();
            let mut out = Vec::new();
            let mut put = |line: OutputLine| {
                assert!(line.bytes.len() <= OUTPUT_LINE_MAX && !line.bytes.contains(&b'\n'));
                out.extend_from_slice(&line.bytes);
                if !line.partial { out.push(b'\n') }
            };
            for c in &chunks { s.push(c).into_iter().for_each(&mut put); }
            s.flush().into_iter().for_each(&mut put);
            prop_assert_eq!(out, chunks.concat());
        }
    }
}
