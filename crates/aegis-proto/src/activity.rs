//! Signs of life of the guest ([`crate::service::Service::Activity`]).
//!
//! The guest looks at itself every [`INTERVAL`] and sends one [`Activity`] frame when it did more than its own
//! housekeeping since the last look. Silence means idle. The host sends nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::frame::{Frame, FrameError};

/// Time between two looks.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// CPU time of processes in one interval that counts as work: 1 %. Less is the kernel's and the harness's own.
pub const CPU_MIN: Duration = Duration::from_millis(50);
/// Bytes on network interfaces other than loopback in one interval that count as work.
pub const NET_BYTES_MIN: u64 = 512;

const ACTIVITY: u8 = 0;

/// What the guest did in one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// CPU time of processes, in milliseconds.
    pub cpu_ms: u64,
    /// Bytes that network interfaces other than loopback moved.
    pub net_bytes: u64,
    /// Established TCP connections to elsewhere.
    pub tcp: u32,
}

impl Activity {
    /// It was more than housekeeping.
    pub fn counts(&self) -> bool {
        u128::from(self.cpu_ms) >= CPU_MIN.as_millis() || self.net_bytes >= NET_BYTES_MIN || self.tcp > 0
    }

    /// As a frame.
    pub fn into_frame(self) -> Frame {
        Frame::json(ACTIVITY, &self)
    }

    /// From a frame.
    ///
    /// # Errors
    /// It is another one.
    pub fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
        match frame.kind {
            ACTIVITY => frame.parse_json(),
            kind => Err(FrameError::malformed(kind, "unexpected kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn housekeeping_is_no_activity() {
        let idle = Activity { cpu_ms: 49, net_bytes: 511, tcp: 0 };
        assert!(!idle.counts());
        for busy in [
            Activity { cpu_ms: 50, ..idle },
            Activity { net_bytes: 512, ..idle },
            Activity { tcp: 1, ..idle },
        ] {
            assert!(busy.counts());
            assert_eq!(Activity::from_frame(&busy.into_frame()), Ok(busy));
        }
    }
}
