//! One process on one stream ([`crate::service::Service::Exec`] and [`crate::service::Service::Streams`]).
//!
//! ```text
//! host  → Start | Attach                   guest → Started | Refused (the stream then ends)
//! host  → Data* End? · Signal* · Resize*   guest → Stdout* Stderr* Exit (the stream then ends)
//! ```
//! Flow control of the multiplexer holds a fast process back while the host is slow. When the stream breaks, a process with a
//! terminal is hung up (unless it is the primary); any other goes on and its output is discarded.

use aegis_types::{ExitStatus, ProcessInput, TerminalSize};
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
    /// It has a terminal of this size as its input and output. Only for [`crate::service::Service::Streams`], as a user of the
    /// process is: an older harness does not look at them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TerminalSize>,
}

/// A request to be connected with the primary process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// New size of its terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
}

/// Host to guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecRequest {
    /// First frame of a stream for a new process.
    Start(Start),
    /// First frame of a stream for the primary process.
    Attach(Attach),
    /// Every other frame.
    Input(ProcessInput),
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

/// [`ProcessInput`] has the numbers in between.
const START: u8 = 1;
const ATTACH: u8 = 6;
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
            Self::Attach(attach) => Frame::json(ATTACH, &attach),
            Self::Input(input) => input.into_frame(),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] for an unknown kind or a payload that does not fit.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match frame.kind {
            START => Ok(Self::Start(frame.parse_json()?)),
            ATTACH => Ok(Self::Attach(frame.parse_json()?)),
            _ => ProcessInput::from_frame(frame).map(Self::Input),
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
            user: Some("nobody".into()),
        };
        let size = Some(TerminalSize { rows: 24, cols: 80 });
        for request in [
            ExecRequest::Start(Start { process, stdin: true, tty: size }),
            ExecRequest::Attach(Attach { size }),
            ExecRequest::Input(ProcessInput::Data(vec![0, 255])),
            ExecRequest::Input(ProcessInput::Signal(15)),
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
        for (kind, payload) in
            [(4, vec![]), (3, vec![1]), (99, vec![]), (START, b"{}".to_vec()), (ATTACH, vec![])]
        {
            assert!(ExecRequest::from_frame(Frame::new(kind, payload)).is_err());
        }
        assert!(ExecEvent::from_frame(Frame::new(EXIT, b"\xff".to_vec())).is_err());
    }
}
