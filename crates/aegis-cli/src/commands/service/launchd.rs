//! launchd, for one user of macOS.
#![cfg_attr(not(target_os = "macos"), allow(dead_code, reason = "only what is written is tested elsewhere"))]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use aegis_config::env::Environment;

use super::{Service, call, remove, write};
use crate::error::CliError;

pub(super) struct Launchd {
    label: String,
    file: PathBuf,
}

fn label(service: &Service) -> String {
    format!("dev.aegisvm.aegisd{}", service.suffix)
}

impl Launchd {
    pub(super) const NAME: &str = "launchd";

    /// # Errors
    /// The user has no home directory.
    pub(super) async fn find(service: &Service) -> Result<Self, CliError> {
        let home = Environment::process().user_home();
        let home = home.ok_or_else(|| CliError::failure("there is no HOME to install the service in"))?;
        let label = label(service);
        Ok(Self { file: home.join("Library/LaunchAgents").join(format!("{label}.plist")), label })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    fn target(&self) -> String {
        format!("{}/{}", domain(), self.label)
    }

    pub(super) async fn runs(&self) -> bool {
        call("launchctl", &[OsStr::new("print"), OsStr::new(&self.target())]).await.is_ok()
    }

    pub(super) async fn install(&self, text: &str) -> Result<(), CliError> {
        write(&self.file, text)?;
        if self.runs().await {
            return Ok(());
        }
        let domain = domain();
        let args = [OsStr::new("bootstrap"), OsStr::new(&domain), self.file.as_os_str()];
        call("launchctl", &args).await.map(drop)
    }

    pub(super) async fn uninstall(&self) -> Result<(), CliError> {
        if self.runs().await {
            call("launchctl", &[OsStr::new("bootout"), OsStr::new(&self.target())]).await?;
        }
        remove(&self.file)
    }

    /// Agents start with the login of their user.
    pub(super) async fn boot_hint(&self) -> Option<String> {
        None
    }

    /// The property list.
    ///
    /// # Errors
    /// A path that no property list can have.
    pub(super) fn text(service: &Service) -> Result<String, CliError> {
        let label = label(service);
        let words = [
            escaped(&service.program.to_string_lossy())?,
            "--home".to_owned(),
            escaped(&service.home.to_string_lossy())?,
            "--log-file".to_owned(),
            escaped(&service.log.to_string_lossy())?,
        ];
        let words: String = words.iter().map(|word| format!("    <string>{word}</string>\n")).collect();
        let path = escaped(&service.path)?;
        // VMs outlive the daemon, which is what AbandonProcessGroup is for.
        Ok(format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
             \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
             <plist version=\"1.0\">\n<dict>\n\
             \x20 <key>Label</key>\n  <string>{label}</string>\n\
             \x20 <key>ProgramArguments</key>\n  <array>\n{words}  </array>\n\
             \x20 <key>EnvironmentVariables</key>\n  <dict>\n    <key>PATH</key>\n    <string>{path}</string>\n  </dict>\n\
             \x20 <key>RunAtLoad</key>\n  <true/>\n\
             \x20 <key>KeepAlive</key>\n  <dict>\n    <key>SuccessfulExit</key>\n    <false/>\n  </dict>\n\
             \x20 <key>AbandonProcessGroup</key>\n  <true/>\n\
             \x20 <key>ExitTimeOut</key>\n  <integer>300</integer>\n\
             </dict>\n</plist>\n"
        ))
    }
}

fn domain() -> String {
    format!("gui/{}", rustix::process::getuid().as_raw())
}

fn escaped(word: &str) -> Result<String, CliError> {
    if word.contains(char::is_control) {
        return Err(CliError::failure(format!("{word:?} cannot be written in a property list")));
    }
    Ok(word.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_property_list_has_what_is_to_be_run() {
        let service = Service {
            suffix: String::new(),
            program: "/opt/a&b/aegisd".into(),
            home: "/Users/x/.aegis".into(),
            log: "/Users/x/.aegis/data/aegisd.log".into(),
            path: "/usr/bin".to_owned(),
        };
        let text = Launchd::text(&service).unwrap();
        assert!(
            text.contains("<string>/opt/a&amp;b/aegisd</string>\n    <string>--home</string>\n"),
            "{text}"
        );
        assert!(text.contains("  <key>Label</key>\n  <string>dev.aegisvm.aegisd</string>\n"), "{text}");
    }
}
