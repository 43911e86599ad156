//! Commands with streams: input, signals and a terminal as well as output.
//!
//! The request is a `POST` with `Connection: Upgrade` and `Upgrade: aegis-streams`. Refusals are answers as everywhere; otherwise
//! the answer is `101 Switching Protocols`, and both sides then send [frames](aegis_types::frame): the client
//! [`ProcessInput`](aegis_types::ProcessInput), the daemon [`ProcessOutput`]. A client that goes away hangs the terminal up; one
//! that says [`ProcessInput::End`](aegis_types::ProcessInput::End) and goes away, or had no input, leaves the command alone.

use aegis_types::TerminalSize;
use aegis_types::frame::{Frame, FrameError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ExecDone, ExecRequest, ExecStarted};

/// Name of the protocol in the header `Upgrade`.
pub const STREAMS: &str = "aegis-streams";

/// Runs a command beside the instance's own, with streams.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct AttachedExec {
    /// The command.
    #[serde(flatten)]
    pub exec: ExecRequest,
    /// The client sends standard input; otherwise it is empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// It has a terminal of this size, which is its input and all its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TerminalSize>,
}

/// Attaches to the instance's own command. The answer begins with the newest output, at most 64 KiB, of a command that has a
/// terminal, so that its screen can be shown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Attach {
    /// Size of the client's terminal, which the command's takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
}

/// From a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessOutput {
    /// It was asked for. Always first. The id of an attachment to the instance's own command is the instance's.
    Started(ExecStarted),
    /// Standard output, or what a terminal shows; at most [`aegis_types::frame::CHUNK_MAX`] bytes.
    Stdout(Vec<u8>),
    /// Standard error, at most [`aegis_types::frame::CHUNK_MAX`] bytes.
    Stderr(Vec<u8>),
    /// It ended, after all of its output. Always last.
    Done(ExecDone),
}

const STARTED: u8 = 0x81;
const STDOUT: u8 = 0x83;
const STDERR: u8 = 0x84;
const DONE: u8 = 0x85;

impl ProcessOutput {
    /// As a frame.
    pub fn into_frame(self) -> Frame {
        match self {
            Self::Started(started) => Frame::json(STARTED, &started),
            Self::Stdout(bytes) => Frame::new(STDOUT, bytes),
            Self::Stderr(bytes) => Frame::new(STDERR, bytes),
            Self::Done(done) => Frame::json(DONE, &done),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] for an unknown kind or a payload that does not fit.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match frame.kind {
            STARTED => Ok(Self::Started(frame.parse_json()?)),
            STDOUT => Ok(Self::Stdout(frame.payload)),
            STDERR => Ok(Self::Stderr(frame.payload)),
            DONE => Ok(Self::Done(frame.parse_json()?)),
            kind => Err(FrameError::malformed(kind, "not output of a process")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn every_message_survives_its_frame() {
        let done = ExecDone { exec_id: "exec-1".into(), exit_code: 130, done: true, error: None };
        for output in [
            ProcessOutput::Started(ExecStarted {
                exec_id: "exec-1".into(),
                started_at: Timestamp::UNIX_EPOCH,
            }),
            ProcessOutput::Stdout(vec![0, 255]),
            ProcessOutput::Stderr(vec![]),
            ProcessOutput::Done(done),
        ] {
            assert_eq!(ProcessOutput::from_frame(output.clone().into_frame()), Ok(output));
        }
        assert!(ProcessOutput::from_frame(Frame::new(2, vec![])).is_err());
    }

    #[test]
    fn a_request_is_that_of_an_exec_and_more() {
        let request = AttachedExec {
            exec: ExecRequest { command: vec!["sh".into()], ..ExecRequest::default() },
            stdin: true,
            tty: Some(TerminalSize { rows: 24, cols: 80 }),
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"command":["sh"],"stdin":true,"tty":{"rows":24,"cols":80}}"#);
        assert_eq!(serde_json::from_str::<AttachedExec>(&text).unwrap(), request);
    }
}
