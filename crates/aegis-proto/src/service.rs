//! The numbered services that the host opens streams to.
//!
//! A stream starts with the service number as two bytes, big-endian. The guest answers one byte,
//! [`ACCEPTED`] or [`REFUSED`]: a feature that an old harness lacks fails alone.

/// The guest offers the service; its protocol follows.
pub const ACCEPTED: u8 = 0;
/// The guest does not know the service; the stream ends.
pub const REFUSED: u8 = 1;

/// A guest service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Service {
    /// JSON-RPC: see [`crate::control`].
    Control = 1,
    /// One process per stream: see [`crate::exec`].
    Exec = 2,
    /// Output and end of the primary process: see [`crate::logs`].
    Logs = 3,
    /// A connection to a TCP port of the guest: see [`crate::tcp`].
    Tcp = 4,
    /// Signs of life of the guest: see [`crate::activity`].
    Activity = 5,
    /// A directory of the host: see [`crate::fuse`].
    Fuse = 6,
    /// Files of the guest as tar streams: see [`crate::files`].
    Files = 7,
    /// As [`Service::Exec`], with terminals, users and the primary process.
    Streams = 8,
}

impl Service {
    const ALL: [Service; 8] = [
        Self::Control,
        Self::Exec,
        Self::Logs,
        Self::Tcp,
        Self::Activity,
        Self::Fuse,
        Self::Files,
        Self::Streams,
    ];

    /// The number on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The service of this number, if this build knows it.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.number() == number)
    }
}
