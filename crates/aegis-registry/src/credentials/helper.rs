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
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const GENEROUS: Duration = Duration::from_secs(60);

    async fn asked(script: &str, host: &str, limit: Duration) -> Result<Option<Credential>, CredentialError> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        get("test", host, Some(dir.path().as_os_str()), limit).await
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_a_host() {
        let script = r#"read server; printf '{"ServerURL":"%s","Username":"%s %s","Secret":"pw"}' "$server" "$1" "$server""#;
        let password = SecretBytes::from("pw".to_owned());
        for (host, asked_for) in [("ghcr.io", "ghcr.io"), ("docker.io", DOCKER_HUB)] {
            let username = format!("get {asked_for}");
            let expected = Credential::Password { username, password: password.clone() };
            assert_eq!(asked(script, host, GENEROUS).await.unwrap(), Some(expected));
        }
    }

    #[tokio::test]
    async fn a_token_is_no_password() {
        let script = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        let token = Credential::IdentityToken(SecretBytes::from("t".to_owned()));
        assert_eq!(asked(script, "a.b", GENEROUS).await.unwrap(), Some(token));
    }

    #[tokio::test]
    async fn unknown_is_not_failed() {
        let script = "echo credentials not found in native keychain; exit 1";
        assert_eq!(asked(script, "a.b", GENEROUS).await.unwrap(), None);
        let script = r#"echo '{"Username":"","Secret":""}'"#;
        assert_eq!(asked(script, "a.b", GENEROUS).await.unwrap(), None);
    }

    #[tokio::test]
    async fn helpers_that_misbehave_are_named() {
        for (script, says) in [
            ("echo the keychain is locked; exit 1", "failed: the keychain is locked"),
            ("echo secret-but-no-json", "wrote no valid answer"),
            ("exec yes", "wrote more than"),
            (r#"printf '\033[2J\n'; exit 2"#, r"failed: \u{1b}[2J"),
        ] {
            let error = asked(script, "a.b", GENEROUS).await.unwrap_err().to_string();
            assert!(error.contains("docker-credential-test") && error.contains(says), "{error}");
            assert!(!error.contains("secret-but"), "{error}");
        }
        let error = asked("exec sleep 1000", "a.b", Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(error.contains("did not answer"), "{error}");
    }

    #[tokio::test]
    async fn only_names_of_programs_are_run() {
        for name in ["../x", "a/b", "", "a b", "/bin/sh"] {
            assert!(get(name, "a.b", Some(OsStr::new("/bin")), GENEROUS).await.is_err(), "{name}");
        }
        let error =
            get("none", "a.b", Some(OsStr::new("/nonexistent")), GENEROUS).await.unwrap_err().to_string();
        assert!(error.contains("not installed"), "{error}");
    }
}
