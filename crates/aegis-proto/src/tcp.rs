//! A connection to a TCP port of the guest ([`crate::service::Service::Tcp`]).
//!
//! The host sends one [`Connect`] frame. The guest connects to the port on its own loopback addresses, IPv4 first, and
//! tries again while nobody listens, until the time is up. It answers with one [`Answer`] frame; after
//! [`Answer::Connected`] each direction is a row of frames that begin with a [`Piece`]: bytes of the connection, at
//! last its end. The end of the stream itself means nothing but a connection that is over or broken: a direction that
//! has not had its [`Piece::End`] was cut off, and the connection is reset.
//!
//! The half-close of the carriers between the two programs cannot tell an end from a cut: a worker that dies closes its
//! sockets as one that has finished does, and the multiplexer has no reset for a stream whose one direction is closed.

use aegis_types::GuestPort;
use serde::{Deserialize, Serialize};

use crate::frame::{Frame, FrameError, HEADER_LEN, PAYLOAD_MAX};

const CONNECT: u8 = 0;
const ANSWER: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;

/// The largest piece that is sent: with its header one message of the multiplexer.
pub const DATA_MAX: usize = 16 * 1024 - HEADER_LEN;

/// What the host wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The port.
    pub port: GuestPort,
    /// Time until somebody must listen, in milliseconds.
    pub wait_ms: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// The bytes of the connection follow.
    Connected,
    /// The stream ends.
    Refused {
        /// For people.
        message: String,
    },
}

impl Connect {
    /// As a frame.
    pub fn into_frame(self) -> Frame {
        Frame::json(CONNECT, &self)
    }

    /// From a frame.
    ///
    /// # Errors
    /// It is another one.
    pub fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
        expect(frame, CONNECT)
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

/// The header of what comes next in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes of the connection follow, at least one.
    Data(usize),
    /// The sender has finished: nothing follows.
    End,
}

impl Piece {
    /// As the header of a frame. Senders keep to [`DATA_MAX`].
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let (kind, length) = match self {
            Self::Data(length) => (DATA, length),
            Self::End => (END, 0),
        };
        let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        [kind, a, b, c, d]
    }

    /// From the header of a frame.
    ///
    /// # Errors
    /// It is another one, or its length cannot be.
    pub fn decode(header: [u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [kind, length @ ..] = header;
        let length = u32::from_be_bytes(length) as usize;
        match (kind, length) {
            (DATA, 1..=PAYLOAD_MAX) => Ok(Self::Data(length)),
            (END, 0) => Ok(Self::End),
            (_, length) if length > PAYLOAD_MAX => Err(FrameError::TooLarge { length }),
            (DATA | END, _) => Err(FrameError::malformed(kind, "unexpected length")),
            _ => Err(FrameError::malformed(kind, "unexpected kind")),
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
        let connect = Connect { port: GuestPort::new(80).unwrap(), wait_ms: 5 };
        let frame = connect.into_frame();
        assert_eq!((frame.kind, frame.payload.as_slice()), (0, &br#"{"port":80,"wait_ms":5}"#[..]));
        assert_eq!(Connect::from_frame(&frame), Ok(connect));
        let refused = Answer::Refused { message: "no".to_owned() };
        let frame = refused.clone().into_frame();
        assert_eq!(frame.payload, br#"{"type":"refused","message":"no"}"#);
        assert_eq!(Answer::from_frame(&frame), Ok(refused));
        assert!(Connect::from_frame(&frame).is_err());
    }

    #[test]
    fn pieces_keep_their_form() {
        for (piece, header) in [
            (Piece::Data(1), [2, 0, 0, 0, 1]),
            (Piece::Data(DATA_MAX), [2, 0, 0, 0x3f, 0xfb]),
            (Piece::End, [3, 0, 0, 0, 0]),
        ] {
            assert_eq!((piece.encode(), Piece::decode(header)), (header, Ok(piece)));
        }
        for bad in [[2, 0, 0, 0, 0], [3, 0, 0, 0, 1], [4, 0, 0, 0, 1], [2, 0, 0x10, 0, 1], [2, 0xff, 0, 0, 0]]
        {
            assert!(Piece::decode(bad).is_err(), "{bad:?}");
        }
    }
}
