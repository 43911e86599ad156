//! The errors of this crate.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use aegis_types::{Digest, ImageName};

use crate::credentials::CredentialError;
use crate::endpoint::InvalidRegistry;

/// Why something could not be had of a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A request failed, at the registry and at every mirror of it.
    #[error("cannot get {what} from {registry}{}", tried(.mirrors))]
    Request {
        /// What was asked for, as in "the manifest of `python`".
        what: String,
        /// The host of the registry.
        registry: String,
        /// What went wrong there.
        #[source]
        problem: Box<Problem>,
        /// The mirrors that were tried before, and what went wrong at each.
        mirrors: Vec<(String, Problem)>,
    },
    /// The image exists, but not for this machine.
    #[error("image `{image}` is for {}, and this machine needs {wanted}", offered.join(", "))]
    Platform {
        /// The image.
        image: ImageName,
        /// What it would have to be for, as `linux/amd64`.
        wanted: String,
        /// What it is for.
        offered: Vec<String>,
    },
    /// What the name means cannot be run, whatever the machine.
    #[error("`{image}` {why}")]
    NotAnImage {
        /// The name.
        image: ImageName,
        /// What it is.
        why: String,
    },
    /// A document of the image breaks the rules.
    #[error("the {document} of image `{image}` is invalid: {why}")]
    Invalid {
        /// The image.
        image: ImageName,
        /// Manifest, index or configuration.
        document: &'static str,
        /// The rule.
        why: String,
    },
    /// A file of this machine.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Verb, as in `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No registry has such a name.
    #[error(transparent)]
    Registry(#[from] InvalidRegistry),
}

fn tried(mirrors: &[(String, Problem)]) -> String {
    let mut out = String::new();
    for (mirror, problem) in mirrors {
        write!(out, ", nor from mirror {mirror} ({problem})").expect("a string takes everything");
    }
    out
}

/// What went wrong at one endpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// 404.
    #[error("it is not there (404){}", words(.said))]
    NotFound {
        /// The registry's own words.
        said: Option<String>,
    },
    /// 401 or 403, from the registry or from its token service.
    #[error("{} ({status}){}{}", denied(*.logged_in), words(.said), unasked(.lookup))]
    Denied {
        /// The status.
        status: u16,
        /// Whether credentials were sent.
        logged_in: bool,
        /// The registry's own words.
        said: Option<String>,
        /// Why credentials could not be looked up.
        lookup: Option<Box<CredentialError>>,
    },
    /// 429.
    #[error("too many requests (429){}{}", asked(.retry_after), words(.said))]
    RateLimited {
        /// How long the registry wants to be left alone.
        retry_after: Option<Duration>,
        /// The registry's own words.
        said: Option<String>,
    },
    /// Any other status that was not expected.
    #[error("the answer is {status}{}", words(.said))]
    Status {
        /// The status.
        status: u16,
        /// How long the registry wants to be left alone.
        retry_after: Option<Duration>,
        /// The registry's own words.
        said: Option<String>,
    },
    /// There is no connection.
    #[error("no connection to {host}")]
    Connect {
        /// The host, which may be that of a token service or of a storage that the registry uses.
        host: String,
        /// What the network said.
        #[source]
        source: reqwest::Error,
    },
    /// The certificate of the host is not accepted.
    #[error("the certificate of {host} is not accepted")]
    Certificate {
        /// The host.
        host: String,
        /// Whether the system has certificates of authorities at all.
        system_roots: bool,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("the connection to {host} failed")]
    Interrupted {
        /// The host.
        host: String,
        /// What the network said.
        #[source]
        source: reqwest::Error,
    },
    /// Nothing came, or too little.
    #[error("{host} sent nothing, or too little, for {} s", .within.as_secs_f32())]
    Timeout {
        /// The host.
        host: String,
        /// The time that it had.
        within: Duration,
    },
    /// It would have to be asked for at a place that must not be asked.
    #[error("it leads to `{url}`, {why}")]
    Unsafe {
        /// The place, made printable.
        url: String,
        /// Why not.
        why: &'static str,
    },
    /// From one place to the next without an end.
    #[error("it was redirected more than {max} times")]
    Redirects {
        /// The bound.
        max: usize,
    },
    /// More than it may be.
    #[error("it is larger than {max} bytes")]
    TooLarge {
        /// The bound.
        max: u64,
    },
    /// Another size than the manifest says.
    #[error("it has {actual} bytes, and the manifest says {expected}")]
    WrongSize {
        /// What the manifest says.
        expected: u64,
        /// What came or was announced.
        actual: u64,
    },
    /// The connection ended before everything was there.
    #[error("the download ended after {actual} of {expected} bytes")]
    Truncated {
        /// What the manifest says.
        expected: u64,
        /// What came.
        actual: u64,
    },
    /// Another content than was asked for.
    #[error("its content does not match its digest {expected}: it is {actual}")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// An answer that breaks the protocol.
    #[error("the answer is invalid: {0}")]
    Malformed(String),
    /// The file that it goes into.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Verb, as in `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// TLS could not be set up, or the proxy is no address.
    #[error("cannot set up the connection: {0}")]
    SetUp(String),
}

fn words(said: &Option<String>) -> String {
    said.as_ref().map(|said| format!(": {said}")).unwrap_or_default()
}

fn unasked(lookup: &Option<Box<CredentialError>>) -> String {
    lookup.as_ref().map(|error| format!("; credentials could not be looked up: {error}")).unwrap_or_default()
}

fn denied(logged_in: bool) -> &'static str {
    if logged_in {
        "access was denied with the stored credentials"
    } else {
        "access was denied without credentials"
    }
}

fn asked(retry_after: &Option<Duration>) -> String {
    retry_after.map(|wait| format!(", to be tried again in {} s", wait.as_secs())).unwrap_or_default()
}

impl Problem {
    /// Whether the same request may succeed later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Connect { .. }
            | Self::Interrupted { .. }
            | Self::Timeout { .. }
            | Self::Truncated { .. } => true,
            // 501 and 505 are no passing weakness of a server; 408 and 425 ask for another attempt.
            Self::Status { status, .. } => {
                matches!(status, 408 | 425) || (*status >= 500 && !matches!(status, 501 | 505))
            }
            _ => false,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the disk rather than the other side is to blame, so that asking elsewhere is of no use.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::File { .. } | Self::SetUp(_))
    }
}

impl RegistryError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Request { registry, problem, .. } => problem.hint(registry),
            Self::Platform { wanted, .. } => {
                Some(format!("choose another tag or another image that is built for {wanted}"))
            }
            Self::NotAnImage { .. } => Some("name an image of the OCI or Docker kind".to_owned()),
            Self::Invalid { .. } => Some("build and push the image again, or choose another one".to_owned()),
            Self::File { .. } | Self::Registry(_) => None,
        }
    }
}

impl Problem {
    fn hint(&self, registry: &str) -> Option<String> {
        Some(match self {
            Self::NotFound { .. } => {
                format!("check the name and the tag; some registries also hide private images so: `aegis registry login {registry}`")
            }
            Self::Denied { logged_in: false, .. } => format!(
                "check the name, as a registry may answer so for an image that does not exist; if it is private: `aegis registry login {registry}`"
            ),
            Self::Denied { logged_in: true, .. } => format!(
                "log in again with `aegis registry login {registry}`, as a user who may read the image; check its name, too"
            ),
            Self::RateLimited { .. } => format!(
                "wait and try again; users who have logged in (`aegis registry login {registry}`) often have a higher limit, and a mirror has its own"
            ),
            Self::Status { status: 500.., .. } | Self::Truncated { .. } => "try again later, or set a mirror".to_owned(),
            Self::Connect { .. } | Self::Timeout { .. } | Self::Interrupted { .. } => {
                "check the name of the registry and the network; behind a proxy, set HTTPS_PROXY for the daemon".to_owned()
            }
            Self::Certificate { system_roots: false, .. } => {
                "this machine has no certificates of authorities: install the package `ca-certificates`".to_owned()
            }
            Self::Certificate { .. } => {
                "if its authority is your own, add that to the authorities of the system or name it in the settings".to_owned()
            }
            Self::WrongDigest { .. } | Self::WrongSize { .. } => {
                "something between here and the registry changes or damages content: try again without mirror and proxy".to_owned()
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::error::Error as _;

    use super::*;

    #[test]
    fn an_error_says_what_was_tried_and_what_to_do() {
        let error = RegistryError::Request {
            what: "the manifest of `a`".to_owned(),
            registry: "docker.io".to_owned(),
            problem: Box::new(Problem::RateLimited {
                retry_after: Some(Duration::from_secs(9)),
                said: Some("slow".to_owned()),
            }),
            mirrors: vec![("m.example".to_owned(), Problem::NotFound { said: None })],
        };
        assert_eq!(
            error.to_string(),
            "cannot get the manifest of `a` from docker.io, nor from mirror m.example (it is not there (404))"
        );
        assert_eq!(
            error.source().unwrap().to_string(),
            "too many requests (429), to be tried again in 9 s: slow"
        );
        assert!(error.hint().unwrap().contains("aegis registry login docker.io"));
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let status = |status| Problem::Status { status, retry_after: None, said: None };
        for (code, passes) in
            [(500, true), (503, true), (408, true), (501, false), (400, false), (302, false)]
        {
            assert_eq!(status(code).may_pass(), passes, "{code}");
        }
    }
}
