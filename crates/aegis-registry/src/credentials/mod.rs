//! Who we are to a registry: the logins of `aegis registry login`, then those of Docker.

mod docker;
mod helper;
mod store;

use std::io;
use std::path::PathBuf;

use aegis_types::SecretBytes;

pub use store::{CredentialStore, Login};

use crate::options::Options;

/// Largest file of credentials, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a registry knows a user by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password, or an access token that is used as one.
    Password {
        /// The user's name.
        username: String,
        /// The password.
        password: SecretBytes,
    },
    /// A refresh token of the OAuth 2 kind, which the token service exchanges for others.
    IdentityToken(SecretBytes),
    /// A token that goes to the registry as it is.
    RegistryToken(SecretBytes),
}

/// Why credentials could not be read, asked for or stored. Values are never part of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A file.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// Verb, as in `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that others can read.
    #[error("{} can be read by other users: `chmod 600` it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// A file that is not what it should be.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A credential helper.
    #[error("credential helper `{program}` {why}")]
    Helper {
        /// Its program.
        program: String,
        /// What it did.
        why: String,
    },
    /// A file cannot be read because the runtime shuts down.
    #[error("the lookup of credentials was cut off")]
    CutOff,
}

/// What is known of a registry, and why something that should be known is not.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) credential: Option<Credential>,
    pub(crate) problem: Option<CredentialError>,
}

/// Looks for credentials of this host (as [`crate::registry_host`] gives it). Public images need none, so a lookup
/// that fails is no failure yet; but if the registry denies access, it belongs into the error.
pub(crate) async fn lookup(options: &Options, host: &str) -> Found {
    match find(options, host).await {
        Ok(credential) => Found { credential, problem: None },
        Err(error) => {
            tracing::warn!(registry = host, %error, "credentials could not be looked up");
            Found { credential: None, problem: Some(error) }
        }
    }
}

async fn find(options: &Options, host: &str) -> Result<Option<Credential>, CredentialError> {
    let (store, key) = (options.credentials.clone(), host.to_owned());
    if let Some(credential) = blocking(move || store.get(&key)).await? {
        return Ok(Some(credential));
    }
    let Some(path) = options.docker_config.clone() else { return Ok(None) };
    let Some(config) = blocking(move || docker::Config::read(&path)).await? else { return Ok(None) };
    if let Some(helper) = config.helper(host)
        && let Some(credential) =
            helper::get(helper, host, options.helper_path.as_deref(), options.timeouts.helper).await?
    {
        return Ok(Some(credential));
    }
    config.stored(host)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CredentialError> + Send + 'static,
) -> Result<T, CredentialError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(CredentialError::CutOff))
}

/// A whole file of credentials, wiped in the end; `None` if there is none.
fn read(path: &std::path::Path) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, CredentialError> {
    use std::io::Read as _;
    let failed = |source| CredentialError::File { action: "read", path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let why = format!("it is larger than {FILE_BYTES_MAX} bytes");
        return Err(CredentialError::Damaged { path: path.to_owned(), why });
    }
    Ok(Some(bytes))
}

/// Where and why JSON does not parse. The parser's own words repeat what it read, which may be a password.
fn damage(path: &std::path::Path, error: &serde_json::Error) -> CredentialError {
    let why = format!("no valid JSON of its kind at line {}, column {}", error.line(), error.column());
    CredentialError::Damaged { path: path.to_owned(), why }
}
