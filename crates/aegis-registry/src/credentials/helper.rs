//! The protocol of Docker's credential helpers: `docker-credential-NAME get` reads an address from standard input and
//! writes JSON.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use aegis_types::SecretBytes;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{Credential, CredentialError};
use crate::text::printable;

const PREFIX: &str = "docker-credential-";
/// Bytes of what a helper may write.
const OUTPUT_MAX: u64 = 64 << 10;
/// The name under which helpers keep Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// The user whose password is a token.
const TOKEN_USER: &str = "<token>";
/// What a helper says of an address that it does not know.
const NOT_FOUND: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: SecretBytes,
}

/// Asks the helper of this name. `path` says where programs are, as the variable `PATH` does; without it, that of this
/// process counts.
pub(super) async fn get(
    helper: &str,
    host: &str,
    path: Option<&OsStr>,
    limit: Duration,
) -> Result<Option<Credential>, CredentialError> {
    let program = format!("{PREFIX}{}", printable(helper));
    let failed = |why: String| CredentialError::Helper { program: program.clone(), why };
    // A name, not a path: the file names no program outside of where programs are.
    if helper.is_empty() || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(failed("is no name of a program".to_owned()));
    }
    let file = match path {
        Some(path) => find(path, &program).ok_or_else(|| failed("is not installed".to_owned()))?,
        None => PathBuf::from(&program),
    };
    let server = if host == "docker.io" { DOCKER_HUB } else { host };
    let run = timeout(limit, run(&file, server)).await;
    let (success, output) = run
        .map_err(|_| failed(format!("did not answer within {} s", limit.as_secs_f32())))?
        .map_err(|e| failed(format!("cannot be run: {e}")))?;
    if output.len() as u64 > OUTPUT_MAX {
        return Err(failed(format!("wrote more than {OUTPUT_MAX} bytes")));
    }
    if !success {
        let text = String::from_utf8_lossy(&output);
        if text.contains(NOT_FOUND) {
            return Ok(None);
        }
        return Err(failed(format!("failed: {}", printable(text.lines().next().unwrap_or_default()))));
    }
    // The parser's words could repeat the secret.
    let answer: Answer =
        serde_json::from_slice(&output).map_err(|_| failed("wrote no valid answer".to_owned()))?;
    Ok(match answer {
        Answer { secret, .. } if secret.expose().is_empty() => None,
        Answer { username, secret } if username == TOKEN_USER => Some(Credential::IdentityToken(secret)),
        Answer { username, .. } if username.is_empty() => None,
        Answer { username, secret } => Some(Credential::Password { username, password: secret }),
    })
}

fn find(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Whether it succeeded, and what it wrote. It is ended when the future is dropped.
async fn run(program: &std::path::Path, server: &str) -> std::io::Result<(bool, Zeroizing<Vec<u8>>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // A helper that does not read its input may have ended already; its status says more.
    let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    drop(stdin);
    let mut output = Zeroizing::new(Vec::new());
    let stdout = child.stdout.take().expect("stdout is a pipe");
    stdout.take(OUTPUT_MAX + 1).read_to_end(&mut output).await?;
    if output.len() as u64 > OUTPUT_MAX {
        return Ok((false, output)); // it may never end by itself
    }
    Ok((child.wait().await?.success(), output))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const GENEROUS: Duration = Duration::from_secs(60);
    /// Scripts, which are files of the repository: one that a test has just written may still be open in the child of
    /// another test, and cannot be run then.
    const HELPERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/helpers");

    async fn asked(helper: &str, host: &str) -> Result<Option<Credential>, CredentialError> {
        get(helper, host, Some(OsStr::new(HELPERS)), GENEROUS).await
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_a_host() {
        let password = SecretBytes::from("pw".to_owned());
        for (host, asked_for) in [("ghcr.io", "ghcr.io"), ("docker.io", DOCKER_HUB)] {
            let username = format!("get {asked_for}");
            let expected = Credential::Password { username, password: password.clone() };
            assert_eq!(asked("echo", host).await.unwrap(), Some(expected));
        }
    }

    #[tokio::test]
    async fn a_token_is_no_password() {
        let token = Credential::IdentityToken(SecretBytes::from("t".to_owned()));
        assert_eq!(asked("token", "a.b").await.unwrap(), Some(token));
    }

    #[tokio::test]
    async fn unknown_is_not_failed() {
        assert_eq!(asked("unknown", "a.b").await.unwrap(), None);
        assert_eq!(asked("empty", "a.b").await.unwrap(), None);
    }

    #[tokio::test]
    async fn helpers_that_misbehave_are_named() {
        for (helper, says) in [
            ("locked", "failed: the keychain is locked"),
            ("nojson", "wrote no valid answer"),
            ("flood", "wrote more than"),
            ("escape", r"failed: \u{1b}[2J"),
        ] {
            let error = asked(helper, "a.b").await.unwrap_err().to_string();
            assert!(
                error.contains(&format!("docker-credential-{helper}")) && error.contains(says),
                "{error}"
            );
            assert!(!error.contains("secret-but"), "{error}");
        }
        let short = Duration::from_millis(50);
        let error = get("hang", "a.b", Some(OsStr::new(HELPERS)), short).await.unwrap_err().to_string();
        assert!(error.contains("did not answer"), "{error}");
    }

    #[tokio::test]
    async fn only_names_of_programs_are_run() {
        for name in ["../x", "a/b", "", "a b", "/bin/sh"] {
            assert!(get(name, "a.b", Some(OsStr::new("/bin")), GENEROUS).await.is_err(), "{name}");
        }
        let error = asked("none", "a.b").await.unwrap_err().to_string();
        assert!(error.contains("not installed"), "{error}");
    }
}
