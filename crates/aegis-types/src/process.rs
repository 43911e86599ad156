//! What a process with streams is told while it runs. The guest wire and the API carry it in the same [frames](crate::frame).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::frame::{Frame, FrameError};

/// Size of a terminal in character cells. Zero means that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// To a process, after its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessInput {
    /// Standard input, at most [`crate::frame::CHUNK_MAX`] bytes.
    Data(Vec<u8>),
    /// End of standard input. A terminal has none: what ends input there is a character.
    End,
    /// Sends this signal number to the process group.
    Signal(u8),
    /// The terminal has another size now.
    Resize(TerminalSize),
}

const DATA: u8 = 2;
const END: u8 = 3;
const SIGNAL: u8 = 4;
const RESIZE: u8 = 5;

impl ProcessInput {
    /// As a frame.
    pub fn into_frame(self) -> Frame {
        match self {
            Self::Data(bytes) => Frame::new(DATA, bytes),
            Self::End => Frame::new(END, []),
            Self::Signal(number) => Frame::new(SIGNAL, [number]),
            Self::Resize(TerminalSize { rows, cols }) => {
                Frame::new(RESIZE, [rows.to_be_bytes(), cols.to_be_bytes()].concat())
            }
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] for an unknown kind or a payload that does not fit.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match (frame.kind, frame.payload.as_slice()) {
            (DATA, _) => Ok(Self::Data(frame.payload)),
            (END, []) => Ok(Self::End),
            (SIGNAL, &[number]) => Ok(Self::Signal(number)),
            (RESIZE, &[r1, r2, c1, c2]) => Ok(Self::Resize(TerminalSize {
                rows: u16::from_be_bytes([r1, r2]),
                cols: u16::from_be_bytes([c1, c2]),
            })),
            _ => Err(FrameError::malformed(frame.kind, "not input of a process")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_message_survives_its_frame() {
        for input in [
            ProcessInput::Data(vec![0, 255]),
            ProcessInput::Data(Vec::new()),
            ProcessInput::End,
            ProcessInput::Signal(15),
            ProcessInput::Resize(TerminalSize { rows: 24, cols: 300 }),
        ] {
            assert_eq!(ProcessInput::from_frame(input.clone().into_frame()), Ok(input));
        }
    }

    #[test]
    fn misfits_are_refused() {
        for (kind, payload) in
            [(SIGNAL, vec![]), (END, vec![1]), (RESIZE, vec![0; 3]), (1, vec![]), (99, vec![])]
        {
            assert!(ProcessInput::from_frame(Frame::new(kind, payload)).is_err());
        }
    }
}
