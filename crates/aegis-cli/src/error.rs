//! What is said when something did not work, and with which exit code.

use std::error::Error;
use std::io;

use aegis_api::{ErrorBody, ErrorCode};
use aegis_client::ClientError;

/// What went wrong, as far as scripts care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Refused or failed.
    Failure,
    /// The command line makes no sense.
    Usage,
    /// `--timeout` or `--max-lifetime` passed.
    Timeout,
    /// The VM did not come up or was lost.
    VmFailed,
    /// The guest could not execute the command.
    NotExecutable,
    /// The guest has no such command.
    CommandNotFound,
    /// A signal asked us to end. Nothing is said.
    Signal(u8),
    /// Nobody reads our output any more. Nothing is said.
    BrokenPipe,
}

impl Kind {
    /// The only place where kinds become exit codes.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Timeout => 124,
            Self::VmFailed => 125,
            Self::NotExecutable => 126,
            Self::CommandNotFound => 127,
            Self::Signal(number) => 128 + number,
            Self::BrokenPipe => Self::Signal(13).exit_code(),
        }
    }

    /// The user knows already.
    pub(crate) fn is_silent(self) -> bool {
        matches!(self, Self::Signal(_) | Self::BrokenPipe)
    }
}

/// What was attempted, why it failed, what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    kind: Kind,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
}

impl CliError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new(), hints: Vec::new() }
    }

    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message)
    }

    /// An error of a library, with its chain of sources as causes.
    pub(crate) fn from_error(error: &dyn Error) -> Self {
        let failure = Self::failure(error.to_string());
        match error.source() {
            Some(source) => failure.because(source),
            None => failure,
        }
    }

    /// Adds an error and its chain of sources as causes.
    pub(crate) fn because(mut self, error: &dyn Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = plain(&error.to_string());
            // Some libraries repeat the source in their own text.
            if !self.causes.iter().any(|cause| cause.contains(&text)) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    pub(crate) fn cause(mut self, text: impl Into<String>) -> Self {
        self.causes.push(text.into());
        self
    }

    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(text.into());
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn causes(&self) -> &[String] {
        &self.causes
    }

    pub(crate) fn hints(&self) -> &[String] {
        &self.hints
    }
}

/// `Connection refused (os error 111)` is for programmers.
fn plain(text: &str) -> String {
    let text = text.find(" (os error ").map_or(text, |at| &text[..at]);
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotRunning { socket, source } => {
                let why = match source.kind() {
                    io::ErrorKind::NotFound => "there is no socket",
                    _ => "nobody listens",
                };
                Self::failure("aegisd is not running")
                    .cause(format!("{why} at {}", socket.display()))
                    .hint("start it with `aegis up`; `aegis doctor` checks the installation")
            }
            ClientError::Api { body, .. } => Self::from(body),
            ClientError::Lost(source) => {
                Self::new(Kind::VmFailed, "lost the connection to aegisd").because(&source).hint(
                    "`aegis status` says whether it runs; its log is `data/aegisd.log` in the home directory",
                )
            }
            ClientError::Cut(_) => Self { kind: Kind::VmFailed, ..Self::from_error(&error) },
            other => Self::from_error(&other),
        }
    }
}

impl From<ErrorBody> for CliError {
    fn from(body: ErrorBody) -> Self {
        let kind = match body.code {
            ErrorCode::BootFailed | ErrorCode::NoMemory | ErrorCode::CrashLoop => Kind::VmFailed,
            ErrorCode::Timeout => Kind::Timeout,
            _ => Kind::Failure,
        };
        let causes = body.cause.into_iter().collect();
        let hints = body.hint.into_iter().collect();
        Self { kind, message: body.error, causes, hints }
    }
}

impl From<aegis_config::HomeError> for CliError {
    fn from(error: aegis_config::HomeError) -> Self {
        Self::from_error(&error).hint("name another directory with `--home` or AEGIS_HOME")
    }
}

impl From<aegis_config::NotFound> for CliError {
    fn from(error: aegis_config::NotFound) -> Self {
        Self::failure(error.to_string()).hint(error.hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_plain_and_not_repeated() {
        let inner = io::Error::from_raw_os_error(111);
        let error = CliError::failure("cannot").because(&inner).because(&inner);
        assert_eq!(error.causes(), ["connection refused"]);
        assert_eq!(plain("URL is bad"), "URL is bad");
    }

    #[test]
    fn kinds_have_the_documented_exit_codes() {
        let kinds = [
            Kind::Failure,
            Kind::Usage,
            Kind::Timeout,
            Kind::VmFailed,
            Kind::NotExecutable,
            Kind::CommandNotFound,
            Kind::Signal(2),
            Kind::Signal(15),
            Kind::BrokenPipe,
        ];
        assert_eq!(kinds.map(Kind::exit_code), [1, 2, 124, 125, 126, 127, 130, 143, 141]);
    }
}
