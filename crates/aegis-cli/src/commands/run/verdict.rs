//! How a run ended, from what the log and the instance say.

use aegis_api::InstanceInfo;
use aegis_types::StopReason;

use crate::error::{CliError, Kind};

/// So many of the newest messages about the instance are shown when its VM failed.
pub(super) const SYSTEM_LINES: usize = 20;

/// The log said that the command ended with this code. `failure` is the error that came right before, which
/// means that the command could not even be started.
pub(super) fn ended(code: u8, failure: Option<&str>) -> Result<u8, CliError> {
    match (code, failure) {
        (126, Some(message)) => Err(CliError::new(Kind::NotExecutable, message)),
        (127, Some(message)) => Err(CliError::new(Kind::CommandNotFound, message)),
        _ => Ok(code),
    }
}

/// The instance stopped and the log does not say how the command ended. `system` is what AegisVM said last.
pub(super) fn stopped(info: &InstanceInfo, system: &[String]) -> Result<u8, CliError> {
    if let Some(code) = info.exit_code {
        return Ok(code);
    }
    let text = match info.stop_reason {
        Some(StopReason::BootFailed) => "the VM did not come up",
        Some(StopReason::Requested | StopReason::Disabled) => {
            "the instance was stopped before its command ended"
        }
        Some(StopReason::GuestShutdown) => "the guest shut down before its command ended",
        Some(StopReason::DaemonStopped) => "aegisd stopped before the command ended",
        Some(StopReason::VmmDied) => "the VM was lost before its command ended",
        Some(StopReason::GuestFault) => "the guest broke the rules of its link and was stopped",
        Some(StopReason::Hibernated) => "the instance was hibernated before its command ended",
        Some(StopReason::ParentStopped) => "the instance that it belongs to was stopped",
        Some(StopReason::Lifetime) => "the instance reached its longest life before its command ended",
        Some(StopReason::NeverStarted | StopReason::Exited) | None => "it is not known how the command ended",
    };
    let kind = match info.stop_reason {
        Some(StopReason::Lifetime) => Kind::Timeout,
        _ => Kind::VmFailed,
    };
    let mut error = CliError::new(kind, text);
    let last_error = info.last_error.as_deref();
    if let Some(cause) = last_error {
        error = error.cause(cause);
    }
    let (hints, lines): (Vec<&str>, Vec<&str>) =
        system.iter().map(String::as_str).partition(|line| line.starts_with(HINT));
    let news: Vec<&str> = lines.into_iter().filter(|line| !repeats(last_error, line)).collect();
    if !news.is_empty() {
        error = error.cause(news.join("\n"));
    }
    if hints.is_empty() && info.stop_reason == Some(StopReason::BootFailed) {
        error = error.hint("`aegis doctor` checks what VMs need");
    }
    Err(hints.into_iter().fold(error, |error, line| error.hint(&line[HINT.len()..])))
}

const HINT: &str = "hint: ";

/// The line adds nothing to the error.
fn repeats(error: Option<&str>, line: &str) -> bool {
    error.is_some_and(|error| line.strip_prefix("boot failed: ").unwrap_or(line) == error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn info(extra: &str) -> InstanceInfo {
        let text = format!(
            r#"{{"id":"inst-1","state":"stopped","enabled":true,"command":["x"],"image_ref":"base","memory_mb":512,"disk_mb":10240,
            "vcpus":1,"created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z","active_execs":0{extra}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_command_that_could_not_be_started_says_why() {
        let error = ended(127, Some("cannot run `x`: not found")).unwrap_err();
        assert_eq!((error.kind(), error.message()), (Kind::CommandNotFound, "cannot run `x`: not found"));
        assert_eq!(ended(126, Some("no")).unwrap_err().kind(), Kind::NotExecutable);
    }

    #[test]
    fn a_command_that_was_started_has_its_own_code() {
        assert_eq!(ended(127, None), Ok(127));
        assert_eq!(ended(3, Some("something else")), Ok(3));
        assert_eq!(stopped(&info(r#","exit_code":4,"stop_reason":"exited""#), &[]), Ok(4));
    }

    #[test]
    fn a_failed_boot_shows_the_error_once_and_the_console() {
        let info = info(r#","stop_reason":"boot_failed","last_error":"no kernel""#);
        let error = stopped(&info, &lines(&["boot failed: no kernel", "console: panic"])).unwrap_err();
        assert_eq!(error.kind(), Kind::VmFailed);
        assert_eq!(error.causes(), ["no kernel", "console: panic"]);
        assert_eq!(error.hints(), ["`aegis doctor` checks what VMs need"]);
    }

    #[test]
    fn the_end_of_a_lifetime_is_a_timeout() {
        let error = stopped(&info(r#","stop_reason":"lifetime""#), &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout);
    }

    #[test]
    fn hints_of_the_log_are_hints() {
        let error =
            stopped(&info(r#","stop_reason":"boot_failed""#), &lines(&["hint: do this"])).unwrap_err();
        assert_eq!((error.causes(), error.hints()), (&[][..], &["do this".to_owned()][..]));
    }
}
