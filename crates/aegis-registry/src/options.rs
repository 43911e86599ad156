//! What the caller decides.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use aegis_types::Proxies;

use crate::{CredentialStore, Mirror};

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct Options {
    /// Docker's `config.json`, for the logins and credential helpers that the user has there already.
    pub docker_config: Option<PathBuf>,
    /// Where credential helpers are looked for, as the variable `PATH` says it; without it, that of this process counts.
    pub helper_path: Option<OsString>,
    /// The logins of `aegis registry login`. They come before those of Docker.
    pub credentials: CredentialStore,
    /// Mirrors to be tried before a registry, by the host of the registry as [`registry_host`](crate::registry_host)
    /// gives it.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Proxies of the host. Registries on this machine are reached without one.
    pub proxies: Proxies,
    /// Certificates (PEM) of authorities to be trusted beside those of the system.
    pub extra_roots: Option<PathBuf>,
    /// Bytes of all layers of one image together, as they are transferred.
    pub image_bytes_max: u64,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What is done about failures that may pass.
    pub retries: Retries,
}

impl Options {
    /// The defaults, with the logins of this store alone.
    pub fn new(credentials: CredentialStore) -> Self {
        Self {
            docker_config: None,
            helper_path: None,
            credentials,
            mirrors: BTreeMap::new(),
            proxies: Proxies::default(),
            extra_roots: None,
            image_bytes_max: 64 << 30,
            timeouts: Timeouts::default(),
            retries: Retries::default(),
        }
    }
}

/// How long things may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect, TLS included.
    pub connect: Duration,
    /// From a request to the head of its answer; for everything but layers, to the end of it.
    pub answer: Duration,
    /// For the next 64 KiB of a layer (less at its end). A download slower than that counts as stalled.
    pub stall: Duration,
    /// For a credential helper.
    pub helper: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            helper: Duration::from_secs(30),
        }
    }
}

/// What is done about failures that may pass: no connection, 429, 5xx, a download that was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Attempts at a registry, the first included. Mirrors get two at most, as there is something else to try.
    pub attempts_max: u32,
    /// The wait before the second attempt; it doubles with each further one, and a random part of up to a half is
    /// taken off.
    pub first_wait: Duration,
    /// Longest wait. A registry that asks for more (`Retry-After`) is given up at once, and the error says what it
    /// asked for.
    pub wait_max: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts_max: 5, first_wait: Duration::from_secs(1), wait_max: Duration::from_secs(60) }
    }
}
