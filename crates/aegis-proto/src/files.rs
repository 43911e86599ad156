//! Files of the guest, copied in and out as tar streams ([`crate::service::Service::Files`]).
//!
//! ```text
//! host → Stat                       guest → Found | Refused
//! host → Read                       guest → Found | Refused, then Data* Report
//! host → Write, then Data* End      guest → Found | Refused, then Report
//! ```
//! The stream ends after that. A direction that ends before its last frame was cut off: what was unpacked of it is not complete.
//! Flow control of the multiplexer holds either side back while the other is slow.

use aegis_types::{CopyReport, FileStat};
use serde::{Deserialize, Serialize};

use crate::frame::{Frame, FrameError, HEADER_LEN};

/// The largest piece that is sent: with its header one message of the multiplexer.
pub const DATA_MAX: usize = 16 * 1024 - HEADER_LEN;

const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const DATA: u8 = 3;
const END: u8 = 4;
const REPORT: u8 = 5;

/// What the host wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// What is at a path.
    Stat {
        /// Absolute.
        path: String,
        /// Of a symbolic link, what it leads to.
        follow: bool,
    },
    /// What is at a path, with everything below it.
    Read {
        /// Absolute.
        path: String,
        /// Of a symbolic link, what it leads to.
        follow: bool,
    },
    /// Unpacks into a directory, which exists.
    Write {
        /// Absolute.
        path: String,
        /// Owners are kept; otherwise everything is root's.
        keep_owners: bool,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// This is at the path; the stream goes on.
    Found {
        /// What it is.
        stat: FileStat,
    },
    /// The stream ends.
    Refused {
        /// There is nothing at the path.
        not_found: bool,
        /// For people.
        message: String,
    },
}

/// What follows the answer, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the tar stream.
    Data(Vec<u8>),
    /// Host: that was all of it.
    End,
    /// Guest: what came of it. Nothing follows.
    Report(CopyReport),
}

impl Request {
    /// As a frame.
    pub fn into_frame(self) -> Frame {
        Frame::json(REQUEST, &self)
    }

    /// From a frame.
    ///
    /// # Errors
    /// It is another one.
    pub fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
        expect(frame, REQUEST)
    }
}

impl Answer {
    /// As a frame.
    pub fn into_frame(self) -> Frame {
        Frame::json(ANSWER, &self)
    }

    /// From a frame.
    ///
    /// # Errors
    /// It is another one.
    pub fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
        expect(frame, ANSWER)
    }
}

impl Piece {
    /// As a frame. Senders keep to [`DATA_MAX`].
    pub fn into_frame(self) -> Frame {
        match self {
            Self::Data(bytes) => Frame::new(DATA, bytes),
            Self::End => Frame::new(END, []),
            Self::Report(report) => Frame::json(REPORT, &report),
        }
    }

    /// From a frame.
    ///
    /// # Errors
    /// It is another one.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match (frame.kind, frame.payload.is_empty()) {
            (DATA, false) => Ok(Self::Data(frame.payload)),
            (END, true) => Ok(Self::End),
            (REPORT, _) => Ok(Self::Report(frame.parse_json()?)),
            (kind, _) => Err(FrameError::malformed(kind, "no piece of a copy")),
        }
    }
}

fn expect<T: serde::de::DeserializeOwned>(frame: &Frame, kind: u8) -> Result<T, FrameError> {
    if frame.kind == kind {
        frame.parse_json()
    } else {
        Err(FrameError::malformed(frame.kind, "unexpected kind"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn frames_keep_their_form() {
        let request = Request::Read { path: "/etc".to_owned(), follow: false };
        let frame = request.clone().into_frame();
        assert_eq!(frame.payload, br#"{"type":"read","path":"/etc","follow":false}"#);
        assert_eq!(Request::from_frame(&frame), Ok(request));
        let refused = Answer::Refused { not_found: true, message: "no".to_owned() };
        let frame = refused.clone().into_frame();
        assert_eq!(
            (frame.kind, frame.payload.as_slice()),
            (2, &br#"{"type":"refused","not_found":true,"message":"no"}"#[..])
        );
        assert_eq!(Answer::from_frame(&frame), Ok(refused));
        for piece in [Piece::Data(vec![1]), Piece::End, Piece::Report(CopyReport::default())] {
            assert_eq!(Piece::from_frame(piece.clone().into_frame()), Ok(piece));
        }
        assert_eq!(Piece::Report(CopyReport::default()).into_frame().payload, br#"{"entries":0,"bytes":0}"#);
        for bad in [Frame::new(DATA, []), Frame::new(END, [1]), Frame::new(9, []), Frame::new(REPORT, [])] {
            assert!(Piece::from_frame(bad).is_err());
        }
    }
}
