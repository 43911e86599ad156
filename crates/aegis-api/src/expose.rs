//! Ports of instances on the host.

use aegis_types::{Expose, GuestPort, Protocol, PublicPort};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Asks for a guest port to be reachable from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExposeRequest {
    /// Inside.
    #[serde(alias = "guest_port")]
    pub port: GuestPort,
    /// Outside; any free one when absent or 0.
    #[serde(default, deserialize_with = "any_or", skip_serializing_if = "Option::is_none")]
    pub public_port: Option<PublicPort>,
    /// Label.
    #[serde(default)]
    pub protocol: Protocol,
}

fn any_or<'de, D: Deserializer<'de>>(d: D) -> Result<Option<PublicPort>, D::Error> {
    let number: Option<u16> = Deserialize::deserialize(d)?;
    Ok(number.and_then(|number| PublicPort::new(number).ok()))
}

impl From<Expose> for ExposeRequest {
    fn from(expose: Expose) -> Self {
        Self { port: expose.guest, public_port: expose.public, protocol: expose.protocol }
    }
}

impl From<ExposeRequest> for Expose {
    fn from(request: ExposeRequest) -> Self {
        Self { guest: request.port, public: request.public_port, protocol: request.protocol }
    }
}

/// A port of an instance on the host's loopback addresses. It stays while the instance rests; connections wake it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    /// Inside.
    pub guest_port: GuestPort,
    /// Outside.
    pub public_port: PublicPort,
    /// Label.
    #[serde(default)]
    pub protocol: Protocol,
    /// Why nobody listens there at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Answer to [`ExposeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExposeReply {
    /// Inside.
    pub guest_port: GuestPort,
    /// Outside.
    pub public_port: PublicPort,
    /// Label.
    #[serde(default)]
    pub protocol: Protocol,
    /// `http://127.0.0.1:PUBLIC`, whatever the protocol.
    pub url: String,
}

impl ExposeReply {
    /// The answer for a port that is exposed.
    pub fn new(guest_port: GuestPort, public_port: PublicPort, protocol: Protocol) -> Self {
        Self { guest_port, public_port, protocol, url: format!("http://127.0.0.1:{public_port}") }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn both_names_of_the_guest_port_and_port_0_are_understood() {
        let read = |text: &str| serde_json::from_str::<ExposeRequest>(text);
        let expected =
            ExposeRequest { port: GuestPort::new(80).unwrap(), public_port: None, protocol: Protocol::Http };
        for text in [r#"{"port":80}"#, r#"{"guest_port":80,"public_port":0,"protocol":"http"}"#] {
            assert_eq!(read(text).unwrap(), expected);
        }
        let chosen = read(r#"{"port":80,"public_port":8080,"protocol":"tcp"}"#).unwrap();
        assert_eq!(chosen, ExposeRequest::from("8080:80/tcp".parse::<Expose>().unwrap()));
        assert_eq!(ExposeRequest::from(Expose::from(chosen)), chosen);
        for bad in [r#"{"port":0}"#, r#"{"port":65536}"#, r#"{"port":80,"public_port":-1}"#, "{}"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
