//! Who is asked for images before their registry.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Mirrors by registry; each is asked in turn, and the registry itself last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, Vec<String>>")]
pub struct Mirrors(BTreeMap<String, Vec<String>>);

impl Mirrors {
    /// Registry and URL of each mirror, in the order in which they are asked.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .flat_map(|(registry, urls)| urls.iter().map(move |url| (registry.as_str(), url.as_str())))
    }
}

impl fmt::Display for Mirrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.iter().map(|(registry, url)| format!("{registry}={url}")).collect();
        f.pad(&pairs.join(","))
    }
}

impl TryFrom<BTreeMap<String, Vec<String>>> for Mirrors {
    type Error = String;

    fn try_from(mirrors: BTreeMap<String, Vec<String>>) -> Result<Self, String> {
        let mirrors = Self(mirrors);
        mirrors.iter().try_for_each(|(registry, url)| check(registry, url))?;
        Ok(mirrors)
    }
}

impl FromStr for Mirrors {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mirrors = BTreeMap::<String, Vec<String>>::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (registry, url) =
                pair.split_once('=').ok_or_else(|| format!("mirror `{pair}` is not REGISTRY=URL"))?;
            mirrors.entry(registry.trim().to_owned()).or_default().push(url.trim().to_owned());
        }
        mirrors.try_into()
    }
}

/// What a mirror may be is the business of whoever asks it; this finds what can be no mirror at all.
fn check(registry: &str, url: &str) -> Result<(), String> {
    if registry.is_empty() || registry.contains('/') {
        return Err(format!("`{registry}` is no registry: write its host, such as `docker.io`"));
    }
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    match rest.split('/').next() {
        None | Some("") => Err(format!("mirror `{url}` of {registry} must begin with `https://` and a host")),
        Some(host) if host.contains('@') => {
            Err(format!("a mirror of {registry} has a user name in its URL: use `aegis registry login`"))
        }
        Some(_) => Ok(()),
    }
}
