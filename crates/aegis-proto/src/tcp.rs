//! A connection to a TCP port of the guest ([`crate::service::Service::Tcp`]).
//!
//! The host sends one [`Connect`] frame. The guest connects to the port on its own loopback addresses, IPv4 first, and
//! tries again while nobody listens, until the time is up. It answers with one [`Answer`] frame; after
//! [`Answer::Connected`] the stream carries the bytes of the connection in both directions, and its half-close is the
//! connection's. A stream that breaks resets the connection in the guest.

use aegis_types::GuestPort;
use serde::{Deserialize, Serialize};

use crate::frame::{Frame, FrameError};

const CONNECT: u8 = 0;
const ANSWER: u8 = 1;

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
}
