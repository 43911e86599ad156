//! Output and end of the primary process ([`crate::service::Service::Logs`]).
//!
//! The host sends one [`Subscribe`] frame and then only reads. The harness keeps recent output in a bounded
//! ring, so a daemon that was away catches up from where it was; what the ring had to give up is counted in a
//! [`LogEvent::Dropped`]. [`LogEvent::Exited`] follows the last line.

use aegis_types::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::frame::{Frame, FrameError};

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// First frame of the stream, host to guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// Highest sequence number that the host has; 0 for everything.
    pub after_seq: u64,
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// A piece of output.
    Line(LogLine),
    /// Lines that the ring gave up before the host read them.
    Dropped {
        /// Number of lines.
        count: u64,
    },
    /// The primary process ended.
    Exited(ExitStatus),
}

/// A piece of output of the primary process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Counts up from 1 in each boot.
    pub seq: u64,
    /// When the harness read it, nanoseconds since the Unix epoch by the guest's clock.
    pub time_unix_ns: u64,
    /// Where it came from.
    pub stream: OutputStream,
    /// No newline followed: see [`crate::lines::OutputLine::partial`].
    pub partial: bool,
    /// The bytes without the newline, at most [`crate::lines::OUTPUT_LINE_MAX`].
    pub bytes: Vec<u8>,
}

const SUBSCRIBE: u8 = 1;
const LINE: u8 = 0x81;
const DROPPED: u8 = 0x82;
const EXITED: u8 = 0x83;

const LINE_HEADER: usize = 17;
const FLAG_STDERR: u8 = 1;
const FLAG_PARTIAL: u8 = 2;

impl Subscribe {
    /// The request as a frame.
    pub fn into_frame(self) -> Frame {
        Frame::json(SUBSCRIBE, &self)
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] for anything but a subscription.
    pub fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
        match frame.kind {
            SUBSCRIBE => frame.parse_json(),
            kind => Err(FrameError::malformed(kind, "not a log subscription")),
        }
    }
}

impl LogEvent {
    /// The event as a frame.
    pub fn into_frame(self) -> Frame {
        match self {
            Self::Line(line) => {
                let mut payload = Vec::with_capacity(LINE_HEADER + line.bytes.len());
                payload.extend_from_slice(&line.seq.to_be_bytes());
                payload.extend_from_slice(&line.time_unix_ns.to_be_bytes());
                let stderr = if line.stream == OutputStream::Stderr { FLAG_STDERR } else { 0 };
                payload.push(stderr | if line.partial { FLAG_PARTIAL } else { 0 });
                payload.extend_from_slice(&line.bytes);
                Frame::new(LINE, payload)
            }
            Self::Dropped { count } => Frame::new(DROPPED, count.to_be_bytes()),
            Self::Exited(status) => Frame::json(EXITED, &status),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] for an unknown kind or a payload that does not fit.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match frame.kind {
            LINE => parse_line(&frame.payload).map(Self::Line),
            DROPPED => {
                let count =
                    frame.payload.as_slice().try_into().map_err(|e| FrameError::malformed(DROPPED, e))?;
                Ok(Self::Dropped { count: u64::from_be_bytes(count) })
            }
            EXITED => Ok(Self::Exited(frame.parse_json()?)),
            kind => Err(FrameError::malformed(kind, "not a log event")),
        }
    }
}

fn parse_line(payload: &[u8]) -> Result<LogLine, FrameError> {
    let too_short = || FrameError::malformed(LINE, "shorter than its header");
    let (seq, rest) = payload.split_first_chunk::<8>().ok_or_else(too_short)?;
    let (time, rest) = rest.split_first_chunk::<8>().ok_or_else(too_short)?;
    let (&flags, bytes) = rest.split_first().ok_or_else(too_short)?;
    if bytes.len() > crate::lines::OUTPUT_LINE_MAX {
        return Err(FrameError::malformed(LINE, "longer than a line may be"));
    }
    Ok(LogLine {
        seq: u64::from_be_bytes(*seq),
        time_unix_ns: u64::from_be_bytes(*time),
        stream: if flags & FLAG_STDERR != 0 { OutputStream::Stderr } else { OutputStream::Stdout },
        partial: flags & FLAG_PARTIAL != 0,
        bytes: bytes.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_survives_its_frame() {
        let line = LogLine {
            seq: u64::MAX,
            time_unix_ns: 1,
            stream: OutputStream::Stderr,
            partial: true,
            bytes: vec![0, 0xff, b'x'],
        };
        for event in
            [LogEvent::Line(line), LogEvent::Dropped { count: 3 }, LogEvent::Exited(ExitStatus::exited(42))]
        {
            assert_eq!(LogEvent::from_frame(event.clone().into_frame()), Ok(event));
        }
        let subscribe = Subscribe { after_seq: 9 };
        assert_eq!(Subscribe::from_frame(&subscribe.into_frame()), Ok(subscribe));
    }

    #[test]
    fn short_and_unknown_frames_are_refused() {
        for (kind, payload) in [(LINE, vec![0; 16]), (DROPPED, vec![0; 7]), (EXITED, vec![]), (7, vec![])] {
            assert!(LogEvent::from_frame(Frame::new(kind, payload)).is_err());
        }
    }
}
