//! Where registries and mirrors are.

use std::net::IpAddr;

use aegis_types::ImageName;
use reqwest::Url;

use crate::text::printable;

/// Docker Hub, as names of images say it.
const DOCKER_HUB: &str = "docker.io";
/// The hosts under which it is known besides; the first one answers.
const DOCKER_HUB_HOSTS: [&str; 3] = ["registry-1.docker.io", "index.docker.io", "registry.hub.docker.com"];

/// Text that names no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no registry: write its host with its port if it has one, such as `ghcr.io` or `localhost:5000`"
)]
pub struct InvalidRegistry(String);

/// The host of a registry as [`ImageName::registry`] gives it, from what users and Docker's files call it:
/// `ghcr.io`, `https://ghcr.io/v2/`, `https://index.docker.io/v1/`.
///
/// # Errors
/// [`InvalidRegistry`] if it is not the name of a host.
pub fn registry_host(text: &str) -> Result<String, InvalidRegistry> {
    let invalid = || InvalidRegistry(printable(text));
    let rest = text.trim().trim_start_matches("https://").trim_start_matches("http://");
    let host = rest.split('/').next().unwrap_or_default();
    // Names of images know which texts are registries; without one, the host would be taken as a directory.
    if !host.contains(['.', ':']) && host != "localhost" {
        return Err(invalid());
    }
    let name = ImageName::parse(&format!("{host}/x")).map_err(|_| invalid())?;
    let host = name.registry();
    Ok(if DOCKER_HUB_HOSTS.contains(&host) { DOCKER_HUB } else { host }.to_owned())
}

/// A mirror of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror(Url);

/// Text that is no address of a mirror.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address of a mirror: {why}")]
pub struct InvalidMirror {
    text: String,
    why: &'static str,
}

impl Mirror {
    /// The address of a mirror, as `https://mirror.example` or `https://host/prefix`, below which is `v2/`.
    ///
    /// # Errors
    /// [`InvalidMirror`] if it is no such address, or is plain HTTP to another machine.
    pub fn parse(text: &str) -> Result<Self, InvalidMirror> {
        let invalid = |why| InvalidMirror { text: printable(text), why };
        let mut url = Url::parse(text).map_err(|_| invalid("write it as `https://mirror.example`"))?;
        check(&url, true).map_err(invalid)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("leave out what is behind `?` and `#`"));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self(url))
    }
}

/// One server that can be asked for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port, for messages.
    pub(crate) name: String,
    /// Of the credentials. Those of a registry never go to its mirrors.
    pub(crate) credentials: String,
    /// Above `v2/`; ends in `/`.
    pub(crate) base: Url,
    pub(crate) is_mirror: bool,
}

impl Endpoint {
    /// The registry itself, by TLS. Whether one on this machine is reached without is found out later.
    pub(crate) fn registry(host: &str) -> Result<Self, InvalidRegistry> {
        let address = if host == DOCKER_HUB { DOCKER_HUB_HOSTS[0] } else { host };
        let base =
            Url::parse(&format!("https://{address}/")).map_err(|_| InvalidRegistry(printable(host)))?;
        Ok(Self { name: host.to_owned(), credentials: host.to_owned(), base, is_mirror: false })
    }

    pub(crate) fn mirror(mirror: &Mirror) -> Self {
        let name = host_of(&mirror.0);
        Self { credentials: name.clone(), name, base: mirror.0.clone(), is_mirror: true }
    }
}

/// Host and port of an address, for messages.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether the address is on this machine. `localhost` is, whatever name servers say: the client does not ask them.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match address(url) {
        Some(address) => address.is_loopback(),
        None => url.host_str() == Some("localhost"),
    }
}

/// Loopback, or `0.0.0.0`, to which Linux connects as if it were.
fn is_this_machine(url: &Url) -> bool {
    is_loopback(url) || address(url).is_some_and(|address| address.is_unspecified())
}

fn address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// Whether an address may be asked: with TLS, or plain on this machine. `near` says whether whoever names it is on this
/// machine as well (or is the user): nobody else can send us to services of this machine.
pub(crate) fn check(url: &Url, near: bool) -> Result<(), &'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("which has a user or a password in it");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("which has no host");
    }
    if is_this_machine(url) && !near {
        return Err("which is on this machine, and a registry elsewhere must not use it");
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(url) => Ok(()),
        "http" => Err("which is plain HTTP: that is for registries on this machine only"),
        _ => Err("which is neither https nor http"),
    }
}

/// Where a redirect leads.
pub(crate) fn redirected(from: &Url, location: &str) -> Result<Url, (String, &'static str)> {
    let target = from.join(location).map_err(|_| (printable(location), "which is no address"))?;
    let refuse = |why| Err((host_of(&target), why));
    if from.scheme() == "https" && target.scheme() != "https" {
        return refuse("which would go on without TLS");
    }
    match check(&target, is_loopback(from)) {
        Ok(()) => Ok(target),
        Err(why) => refuse(why),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn registries_have_one_name() {
        for (text, host) in [
            ("ghcr.io", "ghcr.io"),
            ("https://GHCR.io/v2/", "ghcr.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("localhost", "localhost"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000"),
            (" reg:443 ", "reg:443"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(registry_host(text).as_deref(), Ok(host), "{text}");
        }
        for bad in ["", "ghcr", "https://", "a b.c", "user@a.b", "a.b:x", "/", "ftp://a.b"] {
            assert!(registry_host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn docker_hub_is_elsewhere() {
        let hub = Endpoint::registry("docker.io").unwrap();
        assert_eq!((hub.base.as_str(), &*hub.credentials), ("https://registry-1.docker.io/", "docker.io"));
        assert_eq!(Endpoint::registry("a.b:5000").unwrap().base.as_str(), "https://a.b:5000/");
    }

    #[test]
    fn mirrors_are_https_or_near() {
        for good in
            ["https://m.example", "https://m.example/prefix", "http://127.0.0.1:5000/", "http://[::1]:5000"]
        {
            assert!(Mirror::parse(good).is_ok(), "{good}");
        }
        for bad in
            ["m.example", "http://m.example", "ftp://m", "https://u:p@m", "https://m/?a", "https://m/#a", ""]
        {
            assert!(Mirror::parse(bad).is_err(), "{bad}");
        }
        let mirror = Endpoint::mirror(&Mirror::parse("https://m.example/prefix").unwrap());
        assert_eq!(mirror.base.join("v2/").unwrap().as_str(), "https://m.example/prefix/v2/");
        assert_eq!(mirror.credentials, "m.example");
    }

    #[test]
    fn redirects_never_lose_tls_and_never_reach_this_machine_from_elsewhere() {
        let far = Url::parse("https://reg.example/v2/").unwrap();
        let near = Url::parse("http://127.0.0.1:5000/v2/").unwrap();
        assert_eq!(redirected(&far, "../x").unwrap().as_str(), "https://reg.example/x");
        assert_eq!(redirected(&far, "//other.example/x").unwrap().as_str(), "https://other.example/x");
        assert!(redirected(&near, "http://localhost:1/x").is_ok());
        assert!(redirected(&near, "https://cdn.example/x").is_ok());
        for (from, to) in [
            (&far, "http://reg.example/x"),
            (&far, "http://127.0.0.1/x"),
            (&far, "https://127.0.0.1/x"),
            (&far, "https://0x7f.1/x"),
            (&far, "https://[::ffff:127.0.0.1]/x"),
            (&far, "https://localhost/x"),
            (&far, "https://0.0.0.0/x"),
            (&far, "https://user:pw@reg.example/x"),
            (&far, "file:///etc/passwd"),
            (&far, "https://"),
            (&near, "http://reg.example/x"),
            (&near, "http://0.0.0.0/x"),
        ] {
            assert!(redirected(from, to).is_err(), "{from} → {to}");
        }
    }
}
