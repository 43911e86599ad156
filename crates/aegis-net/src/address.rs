//! What kind of address something is (RFC 6890 and the IANA registry of special addresses).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The network of every guest: nobody else is in it.
pub const GUEST_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 127, 0), 24);
/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
/// The gateway, which is also the name server and `host.aegis.internal`.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);

/// A kind of address that is not the public internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    /// For people.
    pub(crate) name: &'static str,
    /// No rule can allow it: it means the host itself, or nobody at all.
    pub(crate) always: bool,
}

const fn class(network: [u8; 4], prefix: u8, name: &'static str, always: bool) -> (Ipv4Net, Class) {
    let [a, b, c, d] = network;
    (Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix), Class { name, always })
}

/// The most special ones first.
const CLASSES: &[(Ipv4Net, Class)] = &[
    (GUEST_NETWORK, Class { name: "network of the guest itself", always: true }),
    class([0, 0, 0, 0], 8, "unspecified address", true),
    class([127, 0, 0, 0], 8, "loopback address", true),
    class([224, 0, 0, 0], 4, "multicast address", true),
    class([255, 255, 255, 255], 32, "broadcast address", true),
    class([240, 0, 0, 0], 4, "reserved address", true),
    class([169, 254, 169, 254], 32, "metadata service", false),
    class([100, 100, 100, 200], 32, "metadata service", false),
    class([192, 0, 0, 192], 32, "metadata service", false),
    class([168, 63, 129, 16], 32, "metadata service", false),
    class([169, 254, 0, 0], 16, "link-local address", false),
    class([10, 0, 0, 0], 8, "private address", false),
    class([172, 16, 0, 0], 12, "private address", false),
    class([192, 168, 0, 0], 16, "private address", false),
    class([100, 64, 0, 0], 10, "shared address (CGNAT)", false),
    class([192, 0, 0, 0], 24, "special address", false),
    class([192, 88, 99, 0], 24, "special address", false),
    class([192, 0, 2, 0], 24, "documentation address", false),
    class([198, 51, 100, 0], 24, "documentation address", false),
    class([203, 0, 113, 0], 24, "documentation address", false),
    class([198, 18, 0, 0], 15, "benchmarking address", false),
];

/// The kind of this address; `None` for one of the public internet.
pub(crate) fn class_of(address: Ipv4Addr) -> Option<Class> {
    CLASSES.iter().find(|(network, _)| network.contains(&address)).map(|(_, class)| *class)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn special_addresses_are_known_to_their_last_one() {
        for (address, name) in [
            ("0.0.0.0", "unspecified address"),
            ("0.255.255.255", "unspecified address"),
            ("10.255.255.255", "private address"),
            ("100.64.0.0", "shared address (CGNAT)"),
            ("100.127.255.255", "shared address (CGNAT)"),
            ("100.100.100.200", "metadata service"),
            ("127.255.255.254", "loopback address"),
            ("169.254.169.254", "metadata service"),
            ("169.254.1.1", "link-local address"),
            ("172.16.0.0", "private address"),
            ("172.31.255.255", "private address"),
            ("192.168.127.9", "network of the guest itself"),
            ("192.168.128.1", "private address"),
            ("198.19.255.255", "benchmarking address"),
            ("239.255.255.255", "multicast address"),
            ("240.0.0.1", "reserved address"),
            ("255.255.255.255", "broadcast address"),
        ] {
            assert_eq!(class_of(address.parse().unwrap()).map(|c| c.name), Some(name), "{address}");
        }
        for address in
            ["1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.0", "11.0.0.0", "223.255.255.255"]
        {
            assert_eq!(class_of(address.parse().unwrap()), None, "{address}");
        }
    }
}
