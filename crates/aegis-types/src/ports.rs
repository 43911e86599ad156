//! TCP ports inside and outside of a guest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Text that is no port, or no port specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPort {
    /// Not a number from 1 to 65535.
    #[error("invalid port `{0}`: it is a number from 1 to 65535")]
    Number(String),
    /// No known protocol.
    #[error("invalid protocol `{0}`: it is http, tcp or grpc")]
    Protocol(String),
}

macro_rules! port {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "u16", into = "u16")]
        pub struct $name(u16);

        impl $name {
            /// Any port but 0.
            ///
            /// # Errors
            /// [`InvalidPort::Number`] for 0.
            pub fn new(port: u16) -> Result<Self, InvalidPort> {
                if port == 0 { Err(InvalidPort::Number("0".to_owned())) } else { Ok(Self(port)) }
            }

            /// The number.
            pub fn get(self) -> u16 {
                self.0
            }
        }

        impl TryFrom<u16> for $name {
            type Error = InvalidPort;
            fn try_from(port: u16) -> Result<Self, InvalidPort> {
                Self::new(port)
            }
        }

        impl From<$name> for u16 {
            fn from(port: $name) -> u16 {
                port.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidPort;
            fn from_str(text: &str) -> Result<Self, InvalidPort> {
                let number = text.parse().map_err(|_| InvalidPort::Number(text.chars().take(40).collect()))?;
                Self::new(number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

port! {
    /// A port on which something listens inside a guest.
    GuestPort
}
port! {
    /// A port on which the daemon listens on the host's loopback addresses.
    PublicPort
}

/// What is spoken on a port: a label for people; every port carries plain TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP.
    #[default]
    Http,
    /// Anything.
    Tcp,
    /// gRPC.
    Grpc,
}

impl Protocol {
    /// The name as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Grpc => "grpc",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = InvalidPort;
    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        let all = [Self::Http, Self::Tcp, Self::Grpc];
        let unknown = || InvalidPort::Protocol(text.chars().take(40).collect());
        all.into_iter().find(|protocol| protocol.as_str() == text).ok_or_else(unknown)
    }
}

/// A guest port that is to be reachable from the host: `[PUBLIC:]GUEST[/PROTOCOL]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expose {
    /// Inside.
    pub guest: GuestPort,
    /// Outside; any free one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<PublicPort>,
    /// Label.
    #[serde(default)]
    pub protocol: Protocol,
}

impl FromStr for Expose {
    type Err = InvalidPort;
    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        let (ports, protocol) = match text.split_once('/') {
            Some((ports, protocol)) => (ports, protocol.parse()?),
            None => (text, Protocol::default()),
        };
        let (public, guest) = match ports.split_once(':') {
            Some((public, guest)) => (Some(public.parse()?), guest.parse()?),
            None => (None, ports.parse()?),
        };
        Ok(Self { guest, public, protocol })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn port_specifications_are_docker_ordered() {
        let of = |public: Option<u16>, guest, protocol| Expose {
            guest: GuestPort::new(guest).unwrap(),
            public: public.map(|port| PublicPort::new(port).unwrap()),
            protocol,
        };
        for (text, expected) in [
            ("80", of(None, 80, Protocol::Http)),
            ("8080:80", of(Some(8080), 80, Protocol::Http)),
            ("8080:80/tcp", of(Some(8080), 80, Protocol::Tcp)),
            ("80/grpc", of(None, 80, Protocol::Grpc)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in ["", "x", "0", "65536", "80:", ":80", "8080:0", "80/", "80/udp", "1:2:3", "-1", "+80 "] {
            assert!(bad.parse::<Expose>().is_err(), "{bad:?}");
        }
    }
}
