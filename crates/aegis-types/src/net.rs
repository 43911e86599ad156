//! What a guest may reach in the network: the policy as users write it. How it is applied is `aegis-net`'s business.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::GuestPort;

/// Longest name in bytes, as text (RFC 1035, section 2.3.4).
const NAME_MAX: usize = 253;
/// Longest part of a name in bytes.
const LABEL_MAX: usize = 63;
/// Rules of one policy; a longer list belongs into one network.
const RULES_MAX: usize = 256;

/// Text that is no network policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNet {
    /// No policy begins like this.
    #[error("unknown network policy `{0}`: it is public, none, allow:RULE,… or deny:RULE,…")]
    Policy(String),
    /// No rule.
    #[error("invalid network rule `{rule}`: {why}")]
    Rule {
        /// The rule.
        rule: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `none` excludes everything else.
    #[error("`none` allows nothing: leave it out, or leave the rest out")]
    NoneAndMore,
    /// Too long a list.
    #[error("a network policy has at most {RULES_MAX} rules")]
    TooMany,
}

/// What is allowed where no rule says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetMode {
    /// Every address of the public internet.
    #[default]
    Public,
    /// Nothing.
    Listed,
    /// Nothing, and rules change nothing: the guest has no network.
    None,
}

/// What a guest may reach. `deny` wins over `allow`, and `allow` over the mode.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NetPolicy {
    /// What is allowed where no rule says anything.
    #[serde(default)]
    pub mode: NetMode,
    /// What is allowed as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<NetRule>,
    /// What is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<NetRule>,
}

impl NetPolicy {
    /// The policy of these options, which add up: `allow:…` alone allows nothing else, together with `public` it adds
    /// to that; `deny:…` alone takes away from `public`. No option is `public`.
    ///
    /// # Errors
    /// [`InvalidNet`].
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self, InvalidNet> {
        let (mut public, mut none) = (false, false);
        let mut policy = Self::default();
        for option in options.iter().map(AsRef::as_ref) {
            match option.split_once(':') {
                None if option == "public" => public = true,
                None if option == "none" => none = true,
                Some(("allow", rules)) => policy.allow.extend(parse_rules(rules)?),
                Some(("deny", rules)) => policy.deny.extend(parse_rules(rules)?),
                _ => return Err(InvalidNet::Policy(shortened(option))),
            }
        }
        if none && (public || !policy.allow.is_empty() || !policy.deny.is_empty()) {
            return Err(InvalidNet::NoneAndMore);
        }
        if none {
            policy.mode = NetMode::None;
        } else if !public && !policy.allow.is_empty() {
            policy.mode = NetMode::Listed;
        }
        policy.checked()
    }

    /// The same policy if its lists are short enough.
    ///
    /// # Errors
    /// [`InvalidNet::TooMany`].
    pub fn checked(self) -> Result<Self, InvalidNet> {
        let few = self.allow.len() + self.deny.len() <= RULES_MAX;
        if few { Ok(self) } else { Err(InvalidNet::TooMany) }
    }

    /// Adds a rule at the side where it belongs and takes it from the other. Whether something changed.
    pub fn add(&mut self, allow: bool, rule: &NetRule) -> bool {
        let (to, from) =
            if allow { (&mut self.allow, &mut self.deny) } else { (&mut self.deny, &mut self.allow) };
        let before = from.len();
        from.retain(|other| other != rule);
        let removed = from.len() != before;
        let added = !to.contains(rule);
        if added {
            to.push(rule.clone());
        }
        added || removed
    }
}

impl fmt::Display for NetPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |rules: &[NetRule]| rules.iter().map(NetRule::to_string).collect::<Vec<_>>().join(",");
        let mut parts = Vec::new();
        match self.mode {
            NetMode::Public => parts.push("public".to_owned()),
            NetMode::None => parts.push("none".to_owned()),
            NetMode::Listed => {}
        }
        if !self.allow.is_empty() || self.mode == NetMode::Listed {
            parts.push(format!("allow:{}", list(&self.allow)));
        }
        if !self.deny.is_empty() {
            parts.push(format!("deny:{}", list(&self.deny)));
        }
        f.write_str(&parts.join(" "))
    }
}

fn parse_rules(text: &str) -> Result<Vec<NetRule>, InvalidNet> {
    text.split(',').map(str::trim).map(NetRule::from_str).collect()
}

/// Everything that decides the network of one VM. Written by the daemon, read by the worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetSetup {
    /// What the guest may reach.
    pub policy: NetPolicy,
    /// TCP ports of the host's loopback interface that the guest reaches as ports of its gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<GuestPort>,
    /// Name servers of the host, in the order in which they are asked.
    #[serde(default)]
    pub name_servers: Vec<SocketAddr>,
    /// Proxies through which the host reaches the internet.
    #[serde(default)]
    pub proxies: Proxies,
    /// Existing directory for the log of decisions, which belongs to the VM's worker alone.
    pub log_dir: PathBuf,
}

/// Proxies, each as the environment variable of the host says it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Proxies {
    /// `HTTP_PROXY`: for port 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// `HTTPS_PROXY`: for every other TCP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<String>,
    /// `NO_PROXY`: names, name endings, addresses and networks that are reached directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no: Option<String>,
}

/// What was decided about something that a guest wanted to reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetEvent {
    /// When.
    pub ts: Timestamp,
    /// Whether it was allowed.
    pub allowed: bool,
    /// `tcp`, `udp`, `icmp` or `dns`.
    pub protocol: String,
    /// Address and port; the name for `dns`.
    pub destination: String,
    /// Name by which the guest got to know the address, or that it gave itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Why it was denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Events before this one that were not logged, because there were too many in a short time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A destination, or many.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetRule {
    /// Where.
    pub target: NetTarget,
    /// Only this port; every one and every protocol without.
    pub port: Option<GuestPort>,
}

/// Where a rule applies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NetTarget {
    /// A host by its name, in lower case and without a dot at the end.
    Name(String),
    /// Every name below this one, which is not meant itself.
    Below(String),
    /// Addresses.
    Network(Ipv4Net),
}

impl NetTarget {
    /// Whether a rule for this covers a name, which is in lower case and has no dot at the end.
    pub fn covers_name(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Below(parent) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            Self::Network(_) => false,
        }
    }
}

impl FromStr for NetRule {
    type Err = InvalidNet;
    fn from_str(text: &str) -> Result<Self, InvalidNet> {
        let invalid = |why| InvalidNet::Rule { rule: shortened(text), why };
        if text.matches(':').count() > 1 {
            return Err(invalid("guests have no IPv6"));
        }
        let (target, port) = match text.split_once(':') {
            None => (text, None),
            Some((target, port)) => {
                (target, Some(port.parse().map_err(|_| invalid("the port is a number from 1 to 65535"))?))
            }
        };
        let numeric =
            !target.is_empty() && target.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'/');
        let target = if numeric {
            let network = if target.contains('/') {
                target.parse::<Ipv4Net>().map(|net| net.trunc()).ok()
            } else {
                target.parse::<std::net::Ipv4Addr>().map(Ipv4Net::from).ok()
            };
            NetTarget::Network(network.ok_or_else(|| invalid("it is no IPv4 address and no network"))?)
        } else if let Some(parent) = target.strip_prefix("*.") {
            NetTarget::Below(name(parent).ok_or_else(|| invalid("it is no name"))?)
        } else {
            NetTarget::Name(name(target).ok_or_else(|| invalid("it is no name, address or network"))?)
        };
        Ok(Self { target, port })
    }
}

fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let ordinary = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() <= LABEL_MAX && label.bytes().all(ordinary)
    };
    (text.len() <= NAME_MAX && text.split('.').all(is_label)).then_some(text)
}

impl fmt::Display for NetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            NetTarget::Name(name) => f.write_str(name)?,
            NetTarget::Below(name) => write!(f, "*.{name}")?,
            NetTarget::Network(network) if network.prefix_len() == 32 => write!(f, "{}", network.addr())?,
            NetTarget::Network(network) => write!(f, "{network}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{}", port.get()),
            None => Ok(()),
        }
    }
}

// On the wire it is text.
impl PartialSchema for NetRule {
    fn schema() -> RefOr<Schema> {
        String::schema()
    }
}

impl ToSchema for NetRule {}

impl TryFrom<String> for NetRule {
    type Error = InvalidNet;
    fn try_from(text: String) -> Result<Self, InvalidNet> {
        text.parse()
    }
}

impl From<NetRule> for String {
    fn from(rule: NetRule) -> String {
        rule.to_string()
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn options_add_up() {
        for (options, shown, mode) in [
            (&[][..], "public", NetMode::Public),
            (&["public"], "public", NetMode::Public),
            (&["none"], "none", NetMode::None),
            (&["allow:PyPI.org:443,*.example.com."], "allow:pypi.org:443,*.example.com", NetMode::Listed),
            (&["deny:1.2.3.4"], "public deny:1.2.3.4", NetMode::Public),
            (&["allow:10.1.2.3/8", "public"], "public allow:10.0.0.0/8", NetMode::Public),
            (&["allow:a", "deny:a:25"], "allow:a deny:a:25", NetMode::Listed),
        ] {
            let policy = NetPolicy::parse(options).unwrap();
            assert_eq!((policy.to_string().as_str(), policy.mode), (shown, mode), "{options:?}");
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<NetPolicy>(&json).unwrap(), policy);
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (option, why) in [
            ("private", "unknown network policy `private`"),
            ("allow", "unknown network policy `allow`"),
            ("allow:", "it is no name, address or network"),
            ("allow:a,,b", "it is no name"),
            ("allow:a:0", "the port is a number"),
            ("allow:::1", "guests have no IPv6"),
            ("allow:1.2.3", "it is no IPv4 address"),
            ("allow:1.2.3.4/33", "it is no IPv4 address"),
            ("allow:*", "it is no name"),
            ("allow:*.", "it is no name"),
            ("allow:a b", "it is no name"),
            ("deny:a..b", "it is no name"),
        ] {
            let error = NetPolicy::parse(&[option]).unwrap_err().to_string();
            assert!(error.contains(why), "{option}: {error}");
        }
        assert_eq!(NetPolicy::parse(&["none", "allow:a"]), Err(InvalidNet::NoneAndMore));
        let many = format!("allow:{}", vec!["a"; 257].join(","));
        assert_eq!(NetPolicy::parse(&[many]), Err(InvalidNet::TooMany));
    }

    #[test]
    fn names_below_are_not_the_name_itself() {
        let rule: NetRule = "*.example.com".parse().unwrap();
        for (name, covered) in [
            ("a.example.com", true),
            ("a.b.example.com", true),
            ("example.com", false),
            (".example.com", false),
            ("badexample.com", false),
            ("example.com.evil", false),
        ] {
            assert_eq!(rule.target.covers_name(name), covered, "{name}");
        }
    }

    #[test]
    fn a_rule_moves_to_the_other_side() {
        let mut policy = NetPolicy::parse(&["deny:a"]).unwrap();
        let rule = "a".parse().unwrap();
        assert!(policy.add(true, &rule));
        assert!(!policy.add(true, &rule));
        assert_eq!(policy.to_string(), "public allow:a");
    }
}
