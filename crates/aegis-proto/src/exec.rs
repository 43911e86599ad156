//! One process on one stream ([`crate::service::Service::Exec`]).
//!
//! ```text
//! host  → Start                            guest → Started | Refused (the stream then ends)
//! host  → Stdin* Eof? · Signal*            guest → Stdout* Stderr* Exit (the stream then ends)
//! ```
//! Flow control of the multiplexer holds a fast process back while the host is slow. When the stream breaks
//! the process goes on and its output is discarded.

use aegis_types::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::control::{Process, StartFailure, Started};
use crate::frame::{Frame, FrameError};

/// A request to start a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The process. Its environment is the primary's, overlaid by `process.env`.
    pub process: Process,
    /// The host will send standard input; otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
}

/// Host to guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecRequest {
    /// First frame of the stream.
    Start(Start),
    /// Standard input, at most [`crate::frame::CHUNK_MAX`] bytes.
    Stdin(Vec<u8>),
    /// End of standard input.
    Eof,
    /// Sends this signal number to the process group.
    Signal(u8),
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// The process runs.
    Started(Started),
    /// The process did not start; nothing follows.
    Refused(StartFailure),
    /// Standard output, at most [`crate::frame::CHUNK_MAX`] bytes.
    Stdout(Vec<u8>),
    /// Standard error, at most [`crate::frame::CHUNK_MAX`] bytes.
    Stderr(Vec<u8>),
    /// The process ended; all of its output precedes this.
    Exit(ExitStatus),
}

const START: u8 = 1;
const STDIN: u8 = 2;
const EOF: u8 = 3;
const SIGNAL: u8 = 4;
const STARTED: u8 = 0x81;
const REFUSED: u8 = 0x82;
const STDOUT: u8 = 0x83;
const STDERR: u8 = 0x84;
const EXIT: u8 = 0x85;

impl ExecRequest {
    /// The request as a frame.
    pub fn into_frame(self) -> Frame {
        match self {
            Self::Start(start) => Frame::json(START, &start),
            Self::Stdin(bytes) => Frame::new(STDIN, bytes),
            Self::Eof => Frame::new(EOF, []),
            Self::Signal(number) => Frame::new(SIGNAL, [number]),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] for an unknown kind or a payload that does not fit.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match (frame.kind, frame.payload.as_slice()) {
            (START, _) => Ok(Self::Start(frame.parse_json()?)),
            (STDIN, _) => Ok(Self::Stdin(frame.payload)),
            (EOF, []) => Ok(Self::Eof),
            (SIGNAL, &[number]) => Ok(Self::Signal(number)),
            _ => Err(FrameError::malformed(frame.kind, "not an exec request")),
        }
    }
}

impl ExecEvent {
    /// The event as a frame.
    pub fn into_frame(self) -> Frame {
        match self {
            Self::Started(started) => Frame::json(STARTED, &started),
            Self::Refused(failure) => Frame::json(REFUSED, &failure),
            Self::Stdout(bytes) => Frame::new(STDOUT, bytes),
            Self::Stderr(bytes) => Frame::new(STDERR, bytes),
            Self::Exit(status) => Frame::json(EXIT, &status),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] for an unknown kind or a payload that does not fit.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match frame.kind {
            STARTED => Ok(Self::Started(frame.parse_json()?)),
            REFUSED => Ok(Self::Refused(frame.parse_json()?)),
            STDOUT => Ok(Self::Stdout(frame.payload)),
            STDERR => Ok(Self::Stderr(frame.payload)),
            EXIT => Ok(Self::Exit(frame.parse_json()?)),
            kind => Err(FrameError::malformed(kind, "not an exec event")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::control::StartFailureKind;

    #[test]
    fn every_message_survives_its_frame() {
        let process = Process {
            command: vec!["sh".into(), "-c".into(), "echo".into()],
            env: [("K".to_owned(), "V".to_owned())].into(),
            workdir: Some("/tmp".into()),
        };
        for request in [
            ExecRequest::Start(Start { process, stdin: true }),
            ExecRequest::Stdin(vec![0, 255]),
            ExecRequest::Eof,
            ExecRequest::Signal(15),
        ] {
            assert_eq!(ExecRequest::from_frame(request.clone().into_frame()), Ok(request));
        }
        let failure = StartFailure { kind: StartFailureKind::NotFound, message: "no".into() };
        for event in [
            ExecEvent::Started(Started { pid: 7 }),
            ExecEvent::Refused(failure),
            ExecEvent::Stdout(vec![1]),
            ExecEvent::Stderr(vec![]),
            ExecEvent::Exit(ExitStatus::killed(9)),
        ] {
            assert_eq!(ExecEvent::from_frame(event.clone().into_frame()), Ok(event));
        }
    }

    #[test]
    fn misfits_are_refused() {
        for (kind, payload) in [(SIGNAL, vec![]), (EOF, vec![1]), (99, vec![]), (START, b"{}".to_vec())] {
            assert!(ExecRequest::from_frame(Frame::new(kind, payload)).is_err());
        }
        assert!(ExecEvent::from_frame(Frame::new(EXIT, b"\xff".to_vec())).is_err());
    }
}
