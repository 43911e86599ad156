//! Names of images: references of the Docker kind.
//!
//! The grammar is that of the `reference` package of the CNCF distribution project, with the normalisation that
//! every Docker client does: a name without a registry is one of Docker Hub, one of a single component is in
//! `library/` there, and the tag is `latest` unless something else is said.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Digest, InvalidName};

/// Longest name in bytes: with a suffix it must still be a file name.
const NAME_MAX: usize = 240;
const TOO_LONG: &str = "it is longer than 240 bytes";
const TAG_MAX: usize = 128;
const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// A name of an image, `[registry[:port]/]path[:tag][@digest]`, such as `base`, `python:3.12-alpine` or
/// `ghcr.io/team/tools:v1`. It is kept in its shortest form, so two spellings of one image are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// What a name consists of.
struct Parts<'a> {
    /// As written, without `docker.io`.
    registry: Option<&'a str>,
    /// As written, so without `library/` where that may be left out.
    path: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl ImageName {
    /// Parses a name and brings it into its shortest form.
    ///
    /// # Errors
    /// [`InvalidName`], which says what is wrong, when the text does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        normalized(text).map(Self).map_err(|rule| InvalidName::new("image name", text, rule))
    }

    /// The name in its shortest form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host, with its port if it has one, of the registry: `docker.io`, `ghcr.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        split(&self.0).registry.unwrap_or(DEFAULT_REGISTRY)
    }

    /// The path below the registry, as its API wants it: `library/python`, `team/tools`.
    pub fn repository(&self) -> String {
        let parts = split(&self.0);
        let namespace = match parts.registry {
            None if !parts.path.contains('/') => DEFAULT_NAMESPACE,
            _ => "",
        };
        format!("{namespace}{}", parts.path)
    }

    /// The tag, which is `latest` if the name has neither a tag nor a digest. `None` if it has a digest alone.
    pub fn tag(&self) -> Option<&str> {
        let parts = split(&self.0);
        parts.tag.or(if parts.digest.is_none() { Some(DEFAULT_TAG) } else { None })
    }

    /// The digest of the manifest or index that the name is pinned to.
    pub fn digest(&self) -> Option<Digest> {
        let digest = split(&self.0).digest?;
        Some(Digest::parse(digest).expect("the digest of a name was checked when it was parsed"))
    }
}

/// Splits at the places that the grammar makes unambiguous, without checking the pieces.
fn split(text: &str) -> Parts<'_> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (registry, rest) = match rest.split_once('/') {
        Some((first, rest)) if is_registry(first) => (Some(first), rest),
        _ => (None, rest),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    Parts { registry, path, tag, digest }
}

/// Whether the first component of a name is a host rather than a directory of Docker Hub.
fn is_registry(component: &str) -> bool {
    component.contains(['.', ':']) || component.eq_ignore_ascii_case("localhost")
}

fn normalized(text: &str) -> Result<String, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > NAME_MAX {
        return Err(TOO_LONG);
    }
    if text.contains("://") {
        return Err("write it without `https://`, as in `ghcr.io/team/tools:v1`");
    }
    let parts = split(text);
    let registry = parts.registry.map(checked_registry).transpose()?;
    let registry = registry.filter(|host| host != DEFAULT_REGISTRY && host != "index.docker.io");
    check_path(parts.path)?;
    parts.tag.map(check_tag).transpose()?;
    if let Some(digest) = parts.digest {
        Digest::parse(digest).map_err(|_| "a digest must be `sha256:` and 64 lower-case hex digits")?;
    }
    let mut out = String::with_capacity(text.len());
    let path = match &registry {
        Some(host) => {
            out.push_str(host);
            out.push('/');
            parts.path
        }
        None => {
            let short = parts.path.strip_prefix(DEFAULT_NAMESPACE).filter(|rest| !rest.contains('/'));
            // Without its registry, this path would name another one.
            if parts.path.split_once('/').is_some_and(|(first, _)| short.is_none() && is_registry(first)) {
                out.push_str(DEFAULT_REGISTRY);
                out.push('/');
            }
            short.unwrap_or(parts.path)
        }
    };
    out.push_str(path);
    // Beside a digest, `latest` says something that its absence does not.
    if let Some(tag) = parts.tag.filter(|tag| *tag != DEFAULT_TAG || parts.digest.is_some()) {
        out.push(':');
        out.push_str(tag);
    }
    if let Some(digest) = parts.digest {
        out.push('@');
        out.push_str(digest);
    }
    // An IPv6 address has spellings that are shorter than the usual one.
    if out.len() > NAME_MAX { Err(TOO_LONG) } else { Ok(out) }
}

/// The host in lower case and its port without zeros in front.
fn checked_registry(text: &str) -> Result<String, &'static str> {
    const RULE: &str =
        "the registry must be a host name or an address, with an optional port, as in `localhost:5000`";
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(RULE)?;
            let address: Ipv6Addr = address.parse().map_err(|_| RULE)?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(RULE)?) };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let label = |label: &str| {
                label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            };
            if !host.split('.').all(label) {
                return Err(RULE);
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let Some(port) = port else { return Ok(host) };
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(RULE);
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(format!("{host}:{port}")),
        _ => Err("the port of the registry must be a number from 1 to 65535"),
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("upper-case letters are allowed in tags only; write the name in lower case");
    }
    if !path.split('/').all(is_component) {
        return Err(
            "use lower-case letters and digits, with `.`, `_`, `__` or `-` between them, components separated by `/`, and an optional `:tag` and `@digest`",
        );
    }
    Ok(())
}

/// Runs of letters and digits with one separator between two of them: `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(is_alphanumeric)
        && component.ends_with(is_alphanumeric)
        && component
            .split(is_alphanumeric)
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let first = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let rest = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if first && rest && tag.len() <= TAG_MAX {
        return Ok(());
    }
    Err("a tag is at most 128 letters, digits, `.`, `_` and `-`, and begins with a letter, a digit or `_`")
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(&text)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const PIN: &str = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_normalised() {
        for (text, short, registry, repository, tag) in [
            ("base", "base", "docker.io", "library/base", "latest"),
            ("base:latest", "base", "docker.io", "library/base", "latest"),
            ("docker.io/library/base", "base", "docker.io", "library/base", "latest"),
            ("index.docker.io/base", "base", "docker.io", "library/base", "latest"),
            ("library/base", "base", "docker.io", "library/base", "latest"),
            ("python:3.12-alpine", "python:3.12-alpine", "docker.io", "library/python", "3.12-alpine"),
            ("team/tools:v1", "team/tools:v1", "docker.io", "team/tools", "v1"),
            ("docker.io/team/tools", "team/tools", "docker.io", "team/tools", "latest"),
            ("library/a/b", "library/a/b", "docker.io", "library/a/b", "latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c", "docker.io", "a.b/c", "latest"),
            ("docker.io/localhost/c", "docker.io/localhost/c", "docker.io", "localhost/c", "latest"),
            ("docker.io/library/a.b", "a.b", "docker.io", "library/a.b", "latest"),
            ("a.b:1", "a.b:1", "docker.io", "library/a.b", "1"),
            ("localhost", "localhost", "docker.io", "library/localhost", "latest"),
            ("localhost/x", "localhost/x", "localhost", "x", "latest"),
            ("GHCR.io/o/x:Tag", "ghcr.io/o/x:Tag", "ghcr.io", "o/x", "Tag"),
            ("127.0.0.1:05000/a/b:1", "127.0.0.1:5000/a/b:1", "127.0.0.1:5000", "a/b", "1"),
            ("[0:0::1]:5000/x", "[::1]:5000/x", "[::1]:5000", "x", "latest"),
            ("[::1]/x:_a", "[::1]/x:_a", "[::1]", "x", "_a"),
            ("reg:1/library/x", "reg:1/library/x", "reg:1", "library/x", "latest"),
        ] {
            let name = ImageName::parse(text).unwrap();
            assert_eq!(name.as_str(), short, "{text}");
            assert_eq!((name.registry(), &*name.repository()), (registry, repository), "{text}");
            assert_eq!((name.tag(), name.digest()), (Some(tag), None), "{text}");
            assert_eq!(ImageName::parse(short).unwrap(), name, "{text}");
        }
    }

    #[test]
    fn a_digest_replaces_the_default_tag() {
        let digest = Digest::parse(&PIN[1..]).unwrap();
        let name = ImageName::parse(&format!("docker.io/library/python{PIN}")).unwrap();
        assert_eq!(name.as_str(), format!("python{PIN}"));
        assert_eq!((name.tag(), name.digest()), (None, Some(digest.clone())));
        let name = ImageName::parse(&format!("localhost:5000/x:latest{PIN}")).unwrap();
        assert_eq!(name.as_str(), format!("localhost:5000/x:latest{PIN}"));
        assert_eq!((name.tag(), name.digest()), (Some("latest"), Some(digest)));
    }

    #[test]
    fn components_have_single_separators() {
        for good in ["a.b_c", "a__b", "a---b", "9", "a/b/c", "a-b.c/d"] {
            assert!(ImageName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/..",
            "a:",
            "a:b:c",
            "a b",
            ".",
            "a..b",
            "a._b",
            "a___b",
            "-a",
            "a-",
            "a:-x",
            "a\n",
            "ä",
            "a@",
            "a@sha256:1",
            "a@b@c",
            ":x",
            "@x",
            "a:b/c",
        ] {
            assert!(ImageName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn registries_are_hosts() {
        for bad in [
            "-a.b/x",
            "a..b/x",
            "a.b:/x",
            "a.b:0/x",
            "a.b:65536/x",
            "a.b:+5/x",
            "[::1/x",
            "[::g]/x",
            "[::1]x/x",
            ":5/x",
            "user:pw@a.b/x",
            "a_b.c/x",
            "./x",
            "[::1]:/x",
            "[127.0.0.1]:5/x",
        ] {
            assert!(ImageName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn refusals_say_what_to_change() {
        let said = |text: &str| ImageName::parse(text).unwrap_err().to_string();
        assert!(said("Python").contains("in lower case"), "{}", said("Python"));
        assert!(said("https://ghcr.io/x").contains("without `https://`"));
        assert!(said("").contains("empty"));
        assert!(said(&"a".repeat(241)).contains("240"));
        assert!(said("a:@x").contains("tag"));
        assert!(said(&format!("x:{}", "a".repeat(129))).contains("128"));
    }

    #[test]
    fn long_names_stay_file_names() {
        let longest = format!("docker.io/a.b/{}", "c".repeat(NAME_MAX - 14));
        assert_eq!(ImageName::parse(&longest).unwrap().as_str().len(), NAME_MAX);
        assert!(ImageName::parse(&format!("{longest}c")).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in r#"[a-cA-C0-9.:/@\[\]_\-é\n ]{0,40}|\PC{0,60}"#) {
            if let Ok(name) = ImageName::parse(&text) {
                prop_assert!(name.as_str().len() <= NAME_MAX);
                prop_assert_eq!(ImageName::parse(name.as_str()).unwrap(), name);
            }
        }

        #[test]
        fn a_name_and_its_full_form_are_equal(
            registry in r"(docker\.io|localhost|[a-z]{1,4}\.[a-z]{2,3}(:[1-9][0-9]{0,3})?)",
            path in r"[a-z0-9]{1,6}([._-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,2}",
            tag in r"[A-Za-z0-9_][A-Za-z0-9._-]{0,10}",
        ) {
            let name = ImageName::parse(&format!("{registry}/{path}:{tag}")).unwrap();
            let full = format!("{}/{}:{}", name.registry(), name.repository(), name.tag().unwrap());
            prop_assert_eq!(ImageName::parse(&full).unwrap(), name.clone());
            prop_assert_eq!(name.registry(), registry);
            prop_assert_eq!(name.to_string().parse::<ImageName>().unwrap(), name);
        }
    }
}
