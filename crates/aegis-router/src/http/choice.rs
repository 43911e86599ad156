//! Which instance a request is meant for.
//!
//! **Invariant:** a request reaches an instance just when it came to a loopback name or an address, whatever else it
//! says. Any other name may be one that a web page had resolve to this machine to read what it must not (DNS rebinding),
//! and such a page can send our header as well.

use std::net::IpAddr;

use hyper::header::{HOST, HeaderName};
use hyper::http::request::Parts;

use super::problem::Problem;

/// Names an instance.
pub(super) const INSTANCE: HeaderName = HeaderName::from_static("x-aegis-instance");

const HOW: &str = "open `http://<name>.localhost` with the router's port, or send the header `X-Aegis-Instance: <name or id>`";

/// What a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// By our header.
    Named(String),
    /// By `<label>.localhost`.
    Label(String),
    /// Nothing: only one instance can be meant.
    Only,
}

/// Reads the choice from the head of a request that came to the address `local`.
pub(super) fn choose(head: &Parts, local: IpAddr) -> Result<Choice, Problem> {
    let named = single(head, &INSTANCE)?.map(|name| Choice::Named(name.to_owned()));
    let host = match head.uri.authority() {
        // An absolute target goes before the header.
        Some(authority) => Some(authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, h)| h)),
        None => single(head, &HOST)?,
    };
    let Some(host) = host else { return Ok(named.unwrap_or(Choice::Only)) };
    of_host(host, local).map(|by_host| named.unwrap_or(by_host)).ok_or_else(|| {
        let host: String = host.chars().take(80).collect();
        Problem::unavailable(format!("the host `{host}` is no instance: {HOW}"))
    })
}

/// There is not exactly one instance.
pub(super) fn no_only() -> Problem {
    Problem::unavailable(format!("there is not exactly one instance, so say which one is meant: {HOW}"))
}

/// There is no instance of that name.
pub(super) fn unknown(name: &str) -> Problem {
    let name: String = name.chars().take(80).collect();
    Problem::unavailable(format!("there is no instance named `{name}`: `aegis instance list` shows all"))
}

/// A header that must not come twice: two programs could each believe another one.
fn single<'a>(head: &'a Parts, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = head.headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Problem::bad_request(format!("the header `{name}` comes more than once")));
    }
    let Some(value) = first else { return Ok(None) };
    let text =
        value.to_str().map_err(|_| Problem::bad_request(format!("the header `{name}` is not plain text")))?;
    let text = text.trim();
    Ok((!text.is_empty()).then_some(text))
}

fn of_host(host: &str, local: IpAddr) -> Option<Choice> {
    let name = without_port(host)?;
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    if let Ok(address) = address.parse::<IpAddr>() {
        return (address.is_loopback() || address == local.to_canonical()).then_some(Choice::Only);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.eq_ignore_ascii_case("localhost") {
        return Some(Choice::Only);
    }
    let (label, domain) = name.rsplit_once('.')?;
    (domain.eq_ignore_ascii_case("localhost") && !label.is_empty()).then(|| Choice::Label(label.to_owned()))
}

/// A host without its port; `None` when that is no port.
fn without_port(host: &str) -> Option<&str> {
    let after_address = host.find(']').unwrap_or(0);
    match host[after_address..].find(':') {
        Some(colon) => {
            let (name, port) = host.split_at(after_address + colon);
            port[1..].bytes().all(|b| b.is_ascii_digit()).then_some(name)
        }
        None => Some(host),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::net::Ipv4Addr;

    use hyper::Request;
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let builder = headers.iter().fold(Request::get(uri), |b, &(name, value)| b.header(name, value));
        builder.body(()).unwrap().into_parts().0
    }

    fn of(headers: &[(&str, &str)]) -> Result<Choice, Problem> {
        choose(&head("/", headers), LOCAL)
    }

    #[test]
    fn the_header_goes_before_the_host() {
        let choice = of(&[("host", "other.localhost"), ("x-aegis-instance", " web ")]).unwrap();
        assert_eq!(choice, Choice::Named("web".to_owned()));
        assert_eq!(of(&[("host", "localhost"), ("x-aegis-instance", "")]).unwrap(), Choice::Only);
    }

    #[test]
    fn hosts_below_localhost_name_instances() {
        for (host, label) in [
            ("web.localhost", "web"),
            ("web.localhost:8099", "web"),
            ("Web.LocalHost:8099", "Web"),
            ("web.localhost.", "web"),
            ("my.app.localhost", "my.app"),
            ("inst-17.localhost:1", "inst-17"),
        ] {
            assert_eq!(of(&[("host", host)]).unwrap(), Choice::Label(label.to_owned()), "{host}");
        }
    }

    #[test]
    fn loopback_means_the_only_instance() {
        assert_eq!(of(&[]).unwrap(), Choice::Only);
        for host in [
            "",
            "localhost",
            "LOCALHOST:8099",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:8099",
            "[::1]",
            "[::1]:8099",
        ] {
            assert_eq!(of(&[("host", host)]).unwrap(), Choice::Only, "{host}");
        }
        let local = "192.0.2.7".parse().unwrap();
        assert_eq!(choose(&head("/", &[("host", "192.0.2.7:80")]), local).unwrap(), Choice::Only);
    }

    #[test]
    fn other_names_mean_nothing() {
        for host in [
            "evil.example",
            "evil.example:8099",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "xlocalhost",
            ".localhost",
            "192.0.2.7",
            "[::2]",
            "localhost:80x",
            "localhost:80:80",
            "[::1",
            "::1]:x",
        ] {
            assert!(of(&[("host", host)]).is_err(), "{host}");
            assert!(of(&[("host", host), ("x-aegis-instance", "web")]).is_err(), "{host}");
        }
    }

    #[test]
    fn an_absolute_target_goes_before_the_host() {
        let choice = |uri| choose(&head(uri, &[("host", "localhost")]), LOCAL);
        assert_eq!(choice("http://web.localhost:8099/x").unwrap(), Choice::Label("web".to_owned()));
        assert!(choice("http://localhost@evil.example/").is_err());
    }

    #[test]
    fn what_comes_twice_is_refused() {
        assert!(of(&[("host", "localhost"), ("host", "localhost")]).is_err());
        assert!(of(&[("x-aegis-instance", "a"), ("x-aegis-instance", "b")]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(host in prop::collection::vec(any::<u8>(), 0..40), text in ".{0,20}") {
            for value in [HeaderValue::from_bytes(&host), HeaderValue::from_str(&text)].into_iter().flatten() {
                let mut head = head("/", &[]);
                head.headers.insert(HOST, value);
                let _ = choose(&head, LOCAL);
            }
            let _ = of_host(&text, LOCAL);
        }
    }
}
