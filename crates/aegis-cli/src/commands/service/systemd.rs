//! systemd, for one user.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use aegis_config::env::Environment;

use super::{Service, call, remove, write};
use crate::error::CliError;

pub(super) struct Systemd {
    unit: String,
    file: PathBuf,
}

impl Systemd {
    pub(super) const NAME: &str = "systemd";

    /// # Errors
    /// The user has no systemd that answers.
    pub(super) async fn find(service: &Service) -> Result<Self, CliError> {
        let unit = format!("aegisd{}.service", service.suffix);
        let directory = Environment::process().config_dir();
        let directory =
            directory.ok_or_else(|| CliError::failure("there is no HOME to install the service in"))?;
        systemctl(&["show-environment"]).await.map_err(|error| {
            let causes =
                error.causes().iter().fold(
                    CliError::failure("this user has no systemd that could start aegisd"),
                    |all, cause| all.cause(cause),
                );
            causes
                .hint("`aegis service install --print` shows the unit")
                .hint("`aegis up` starts aegisd without it")
        })?;
        Ok(Self { file: directory.join("systemd/user").join(&unit), unit })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) async fn runs(&self) -> bool {
        systemctl(&["is-active", "--quiet", &self.unit]).await.is_ok()
    }

    pub(super) async fn install(&self, text: &str) -> Result<(), CliError> {
        write(&self.file, text)?;
        systemctl(&["daemon-reload"]).await?;
        systemctl(&["enable", "--now", &self.unit])
            .await
            .map(drop)
            .map_err(|error| error.hint(format!("see `journalctl --user -u {}`", self.unit)))
    }

    pub(super) async fn uninstall(&self) -> Result<(), CliError> {
        systemctl(&["disable", "--now", &self.unit]).await?;
        remove(&self.file)?;
        systemctl(&["daemon-reload"]).await.map(drop)
    }

    /// Services of a user end with its last session unless it lingers.
    pub(super) async fn boot_hint(&self) -> Option<String> {
        let lingers = call("loginctl", &["show-user", "--property=Linger", "--value"].map(OsStr::new)).await;
        match lingers.as_deref().map(str::trim) {
            Ok("yes") => None,
            _ => Some("To have it started at boot, without a login: `loginctl enable-linger`\n".to_owned()),
        }
    }

    /// The unit.
    ///
    /// # Errors
    /// A path that no unit can have.
    pub(super) fn text(service: &Service) -> Result<String, CliError> {
        let program = quoted(&service.program.to_string_lossy())?;
        let home = quoted(&service.home.to_string_lossy())?;
        let log = quoted(&service.log.to_string_lossy())?;
        // Unlike in commands, a dollar sign stands for itself there.
        let path = quoted(&format!("PATH={}", service.path))?.replace("$$", "$");
        Ok(format!(
            "# Written by `aegis service install`.\n\
             [Unit]\n\
             Description=AegisVM daemon\n\
             \n\
             [Service]\n\
             Type=exec\n\
             ExecStart={program} --home {home} --log-file {log}\n\
             Environment={path}\n\
             Restart=on-failure\n\
             RestartSec=2\n\
             # VMs outlive the daemon: only it is stopped, and a new one takes them over.\n\
             KillMode=process\n\
             # To hibernate all running instances takes a while.\n\
             TimeoutStopSec=300\n\
             \n\
             [Install]\n\
             WantedBy=default.target\n"
        ))
    }
}

async fn systemctl(args: &[&str]) -> Result<String, CliError> {
    let mut all: Vec<&OsStr> = vec![OsStr::new("--user")];
    all.extend(args.iter().map(OsStr::new));
    call("systemctl", &all).await
}

/// A word of a unit file: systemd.syntax(7) and systemd.service(5).
fn quoted(word: &str) -> Result<String, CliError> {
    if word.contains(char::is_control) {
        return Err(CliError::failure(format!("{word:?} cannot be written in a unit of systemd")));
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' | '$' => text.extend([c, c]),
            _ => text.push(c),
        }
    }
    text.push('"');
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn words_are_quoted_for_units() {
        assert_eq!(quoted(r#"/a b/50%/$x/"q"\"#).unwrap(), r#""/a b/50%%/$$x/\"q\"\\""#);
        assert!(quoted("/a\nExecStart=/bin/evil").is_err());
    }
}
