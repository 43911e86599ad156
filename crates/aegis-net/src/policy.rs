//! What a guest may reach. Pure: addresses and names in, a verdict out.

use std::fmt;
use std::net::Ipv4Addr;

use aegis_types::{NetMode, NetPolicy, NetRule, NetTarget};

use crate::address::class_of;

/// How something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl Protocol {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Where something is to go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) protocol: Protocol,
    pub(crate) address: Ipv4Addr,
    /// 0 for ICMP.
    pub(crate) port: u16,
    /// Names for which the guest was told this address.
    pub(crate) names: &'a [String],
    /// It is an address of the host.
    pub(crate) own: bool,
}

/// Why something is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    /// The address is.
    Address,
    /// Only the name is: what the guest says about the name has to be looked at.
    Name,
}

/// Why something is denied. The text completes "denied: ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no network.
    NoNetwork,
    /// The kind of address.
    Class(&'static str),
    /// The host itself.
    Host,
    /// A rule.
    Rule(NetRule),
    /// No rule allows it.
    NotListed,
    /// A name that the guest gave for itself is not allowed at this address.
    OtherName(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNetwork => f.write_str("the instance has no network"),
            Self::Class(name) => f.write_str(name),
            Self::Host => f.write_str("address of the host"),
            Self::Rule(rule) => write!(f, "rule deny:{rule}"),
            Self::NotListed => f.write_str("no rule allows it"),
            Self::OtherName(name) => write!(f, "the name `{name}` is not allowed"),
        }
    }
}

fn applies(rule: &NetRule, to: &Destination<'_>) -> bool {
    rule.port.is_none_or(|port| port.get() == to.port)
        && match &rule.target {
            NetTarget::Network(network) => network.contains(&to.address),
            target => to.names.iter().any(|name| target.covers_name(name)),
        }
}

/// Whether something may be sent there.
pub(crate) fn decide(policy: &NetPolicy, to: &Destination<'_>) -> Result<Grant, Refusal> {
    if policy.mode == NetMode::None {
        return Err(Refusal::NoNetwork);
    }
    let class = class_of(to.address);
    if let Some(class) = class.filter(|class| class.always) {
        return Err(Refusal::Class(class.name));
    }
    if to.own {
        return Err(Refusal::Host);
    }
    if let Some(rule) = policy.deny.iter().find(|rule| applies(rule, to)) {
        return Err(Refusal::Rule(rule.clone()));
    }
    let mut allowing = policy.allow.iter().filter(|rule| applies(rule, to));
    if allowing.clone().any(|rule| matches!(rule.target, NetTarget::Network(_))) {
        return Ok(Grant::Address);
    }
    // Also for a name that a rule allows: whoever owns the name must not decide what of ours it means.
    if let Some(class) = class {
        return Err(Refusal::Class(class.name));
    }
    match policy.mode {
        NetMode::Public => Ok(Grant::Address),
        // Nothing in a datagram says reliably which name it is for.
        NetMode::Listed if to.protocol == Protocol::Tcp && allowing.next().is_some() => Ok(Grant::Name),
        NetMode::Listed | NetMode::None => Err(Refusal::NotListed),
    }
}

/// Whether a name may be resolved. It is in lower case and has no dot at the end.
pub(crate) fn decide_name(policy: &NetPolicy, name: &str) -> Result<(), Refusal> {
    let every_port = |rule: &&NetRule| rule.port.is_none() && rule.target.covers_name(name);
    if let Some(rule) = policy.deny.iter().find(every_port) {
        return Err(Refusal::Rule(rule.clone()));
    }
    match policy.mode {
        NetMode::None => Err(Refusal::NoNetwork),
        NetMode::Public => Ok(()),
        NetMode::Listed if policy.allow.iter().any(|rule| rule.target.covers_name(name)) => Ok(()),
        NetMode::Listed => Err(Refusal::NotListed),
    }
}

/// Whether a guest may be told of this address: not of special ones, unless a rule names them.
pub(crate) fn decide_answer(policy: &NetPolicy, address: Ipv4Addr) -> Result<(), Refusal> {
    let named = policy.allow.iter().any(|rule| match &rule.target {
        NetTarget::Network(network) => network.contains(&address),
        NetTarget::Name(_) | NetTarget::Below(_) => false,
    });
    match class_of(address).filter(|class| class.always || !named) {
        Some(class) => Err(Refusal::Class(class.name)),
        None => Ok(()),
    }
}

/// Whether what is sent to a port may be for this name, which the guest gave in what it sent.
pub(crate) fn decide_said(policy: &NetPolicy, grant: Grant, name: &str, port: u16) -> Result<(), Refusal> {
    let applies =
        |rule: &&NetRule| rule.port.is_none_or(|p| p.get() == port) && rule.target.covers_name(name);
    if let Some(rule) = policy.deny.iter().find(applies) {
        return Err(Refusal::Rule(rule.clone()));
    }
    if grant == Grant::Name && !policy.allow.iter().any(|rule| applies(&rule)) {
        return Err(Refusal::OtherName(name.to_owned()));
    }
    Ok(())
}

/// Whether names that a guest says matter at all.
pub(crate) fn looks_at_names(policy: &NetPolicy, grant: Grant) -> bool {
    grant == Grant::Name || policy.deny.iter().any(|rule| !matches!(rule.target, NetTarget::Network(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn tcp<'a>(address: &str, port: u16, names: &'a [String]) -> Destination<'a> {
        let address = address.parse().unwrap();
        Destination { protocol: Protocol::Tcp, address, port, names, own: false }
    }

    fn verdict(options: &[&str], address: &str, port: u16, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let policy = NetPolicy::parse(options).unwrap();
        match decide(&policy, &tcp(address, port, &names)) {
            Ok(grant) => format!("{grant:?}"),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn verdicts_are_those_of_the_documentation() {
        for (options, address, port, names, expected) in [
            (&[][..], "1.1.1.1", 443, &[][..], "Address"),
            (&[], "10.0.0.1", 443, &[], "private address"),
            (&[], "169.254.169.254", 80, &[], "metadata service"),
            (&["none"], "1.1.1.1", 443, &[], "the instance has no network"),
            // A public name that means something private.
            (&[], "10.0.0.1", 443, &["evil.example"], "private address"),
            (&["allow:evil.example"], "10.0.0.1", 443, &["evil.example"], "private address"),
            // What the user names by its address is meant.
            (&["public", "allow:10.0.0.0/8"], "10.0.0.1", 443, &[], "Address"),
            (&["public", "allow:10.0.0.0/8:443"], "10.0.0.1", 80, &[], "private address"),
            (&["public", "allow:169.254.169.254"], "169.254.169.254", 80, &[], "Address"),
            (&["public", "allow:127.0.0.0/8"], "127.0.0.1", 80, &[], "loopback address"),
            (&["public", "allow:0.0.0.0/0"], "192.168.127.5", 80, &[], "network of the guest itself"),
            (&["allow:a.example:443"], "1.2.3.4", 443, &["a.example"], "Name"),
            (&["allow:a.example:443"], "1.2.3.4", 80, &["a.example"], "no rule allows it"),
            (&["allow:a.example"], "1.2.3.4", 443, &[], "no rule allows it"),
            (&["allow:*.example"], "1.2.3.4", 443, &["b", "a.example"], "Name"),
            (&["allow:a.example,1.2.3.4"], "1.2.3.4", 443, &["a.example"], "Address"),
            (&["deny:1.2.3.0/24"], "1.2.3.4", 443, &[], "rule deny:1.2.3.0/24"),
            (&["deny:a.example"], "1.2.3.4", 443, &["a.example"], "rule deny:a.example"),
            (&["allow:1.2.3.4", "deny:1.2.3.4:25"], "1.2.3.4", 25, &[], "rule deny:1.2.3.4:25"),
            (&["allow:1.2.3.4", "deny:1.2.3.4:25"], "1.2.3.4", 26, &[], "Address"),
        ] {
            assert_eq!(
                verdict(options, address, port, names),
                expected,
                "{options:?} {address}:{port} {names:?}"
            );
        }
    }

    #[test]
    fn addresses_of_the_host_and_datagrams_by_name_are_denied() {
        let policy = NetPolicy::parse(&["allow:9.9.9.9,a.example"]).unwrap();
        let names = ["a.example".to_owned()];
        let own = Destination { own: true, ..tcp("9.9.9.9", 80, &[]) };
        assert_eq!(decide(&policy, &own), Err(Refusal::Host));
        let udp = Destination { protocol: Protocol::Udp, ..tcp("1.2.3.4", 443, &names) };
        assert_eq!(decide(&policy, &udp), Err(Refusal::NotListed));
        let udp = Destination { protocol: Protocol::Udp, ..tcp("9.9.9.9", 443, &[]) };
        assert_eq!(decide(&policy, &udp), Ok(Grant::Address));
    }

    #[test]
    fn names_are_checked_when_they_are_resolved_and_when_they_are_said() {
        let listed = NetPolicy::parse(&["allow:a.example:443,*.b.example", "deny:x.b.example"]).unwrap();
        assert_eq!(decide_name(&listed, "a.example"), Ok(()));
        assert_eq!(decide_name(&listed, "c.b.example"), Ok(()));
        assert_eq!(decide_name(&listed, "other"), Err(Refusal::NotListed));
        assert!(matches!(decide_name(&listed, "x.b.example"), Err(Refusal::Rule(_))));
        assert_eq!(decide_said(&listed, Grant::Name, "a.example", 443), Ok(()));
        assert!(matches!(decide_said(&listed, Grant::Name, "a.example", 80), Err(Refusal::OtherName(_))));
        assert!(matches!(decide_said(&listed, Grant::Address, "x.b.example", 1), Err(Refusal::Rule(_))));
        assert_eq!(decide_said(&listed, Grant::Address, "other", 1), Ok(()));
        // One port of a name is denied: the name itself is not.
        let ported = NetPolicy::parse(&["deny:a.example:25"]).unwrap();
        assert_eq!(decide_name(&ported, "a.example"), Ok(()));
        let none = NetPolicy::parse(&["none"]).unwrap();
        assert_eq!(decide_name(&none, "a.example"), Err(Refusal::NoNetwork));
    }

    proptest! {
        #[test]
        fn nothing_special_is_reached_without_a_rule_that_names_its_address(
            bits in any::<u32>(), port in any::<u16>(), named in any::<bool>(), listed in any::<bool>(),
        ) {
            let options = if listed { vec!["allow:a.example"] } else { vec![] };
            let policy = NetPolicy::parse(&options).unwrap();
            let names = if named { vec!["a.example".to_owned()] } else { Vec::new() };
            let address = Ipv4Addr::from(bits);
            let to = Destination { protocol: Protocol::Tcp, address, port, names: &names, own: false };
            if class_of(address).is_some() {
                prop_assert!(decide(&policy, &to).is_err());
            }
        }
    }
}
