//! The handshake on the raw carrier, before the multiplexer. The host speaks first.
//!
//! ```text
//! host  → {"aegis":"hello", …}\n      clock, entropy and identity: applied before anything else runs
//! guest → {"aegis":"welcome", …}\n    the same nonce: older bytes in the pipe are skipped until it appears
//! both  → multiplexer
//! …
//! host  → control call `park`; closes the multiplexer
//! guest → {"aegis":"parked", …}\n     on the re-opened carrier: it may be saved, or greeted again
//! ```

use std::net::Ipv4Addr;

use aegis_types::MountPoint;
use serde::{Deserialize, Serialize};

/// The longest handshake line, in bytes.
pub const HELLO_MAX: usize = 4096;
/// Bytes of seed that the host must send at least.
pub const SEED_MIN: usize = 32;

/// What the host tells a guest before anything runs in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Highest generation that the host speaks.
    pub generation: u32,
    /// Random; the answer repeats it.
    pub nonce: String,
    /// Nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// At least [`SEED_MIN`] random bytes in hexadecimal, credited to the guest's random number generator.
    pub seed: String,
    /// Host name of the guest.
    pub hostname: String,
    /// 32 hexadecimal digits: machine-id(5).
    pub machine_id: String,
    /// The guest becomes a template: it gets its names with a later greeting, so those of this one are neither set nor
    /// written to its disk. The network and the mounts are what most of its copies have; each is told its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub template: bool,
    /// The guest's network; it has none without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<GuestNetwork>,
    /// Directories of the host that are mounted before any process runs, unless they are already: the host serves each
    /// over a stream (see [`crate::fuse`]), by its place in this list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<GuestMount>,
    /// Length in bytes that the disk of the guest has now, or will have in a moment, when it was shorter in the template
    /// that the guest is a copy of: its file system is grown before any process runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

/// A directory of the host, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Where it is mounted.
    pub target: MountPoint,
    /// Nothing in it can be changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// How the guest sets up its one network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// Hardware address: six bytes in hexadecimal with colons between them.
    pub mac: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix in bits.
    pub prefix: u8,
    /// Where everything else is, and the name server.
    pub gateway: Ipv4Addr,
    /// Largest packet in bytes.
    pub mtu: u16,
}

impl std::fmt::Debug for Hello {
    // The seed is secret: whoever knows it knows the guest's random numbers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("generation", &self.generation)
            .field("nonce", &self.nonce)
            .field("time_unix_ns", &self.time_unix_ns)
            .field("seed", &"[redacted]")
            .field("hostname", &self.hostname)
            .field("machine_id", &self.machine_id)
            .field("template", &self.template)
            .field("network", &self.network)
            .field("mounts", &self.mounts)
            .field("disk_bytes", &self.disk_bytes)
            .finish()
    }
}

/// The guest's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The generation that both speak from now on: never above the host's.
    pub generation: u32,
    /// The nonce of the greeting.
    pub nonce: String,
    /// Version of the harness.
    pub version: String,
    /// Nanoseconds since the guest kernel started (CLOCK_BOOTTIME).
    pub boottime_ns: u64,
}

/// One line of the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "aegis", rename_all = "snake_case")]
pub enum Greeting {
    /// Host to guest.
    Hello(Hello),
    /// Guest to host: the greeting was applied.
    Welcome(Welcome),
    /// Guest to host: parked, waiting for the next greeting.
    Parked,
}

impl Greeting {
    /// The line, newline included.
    pub fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("wire types serialise");
        line.push(b'\n');
        line
    }

    /// Reads a line; `None` for anything else, because bytes of an earlier session may precede a greeting.
    pub fn decode(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn greetings_keep_their_form() {
        let hello = Greeting::Hello(Hello {
            generation: 1,
            nonce: "n".into(),
            time_unix_ns: 5,
            seed: "ab".repeat(SEED_MIN),
            hostname: "web".into(),
            machine_id: "0".repeat(32),
            template: false,
            network: None,
            mounts: Vec::new(),
            disk_bytes: None,
        });
        let text = String::from_utf8(hello.encode()).unwrap();
        assert!(
            text.starts_with(r#"{"aegis":"hello","generation":1,"nonce":"n","time_unix_ns":5,"seed":"ab"#)
        );
        assert!(text.len() < HELLO_MAX);
        assert_eq!(Greeting::decode(text.trim_end().as_bytes()), Some(hello.clone()));
        assert!(!format!("{hello:?}").contains("abab"));
        assert_eq!(Greeting::Parked.encode(), b"{\"aegis\":\"parked\"}\n");
        assert_eq!(Greeting::decode(b"\x00\xff garbage"), None);
    }
}
