//! How a run ended, from what the log and the instance say.

use aegis_api::InstanceInfo;
use aegis_types::StopReason;

use crate::error::{CliError, Kind};

/// So many of the newest messages about the instance are shown when its VM failed.
pub(super) const SYSTEM_LINES: usize = 20;

/// The exit code of the command, or why there is none.
///
/// `logged` is the code that the log gives, `system` what AegisVM said in the log. The instance may be unknown or
/// behind the log.
pub(super) fn verdict(
    command: &[String],
    logged: Option<u8>,
    info: Option<&InstanceInfo>,
    system: &[String],
) -> Result<u8, CliError> {
    let code = info.and_then(|info| info.exit_code).or(logged);
    let last_error = info.and_then(|info| info.last_error.as_deref());
    if let Some(code) = code {
        return match (code, last_error) {
            (126, Some(cause)) => Err(not_run(Kind::NotExecutable, command, cause)),
            (127, Some(cause)) => Err(not_run(Kind::CommandNotFound, command, cause)),
            _ => Ok(code),
        };
    }
    let reason = info.and_then(|info| info.stop_reason);
    let text = match reason {
        Some(StopReason::BootFailed) => "the VM did not come up",
        Some(StopReason::Requested | StopReason::Disabled) => {
            "the instance was stopped before its command ended"
        }
        Some(StopReason::GuestShutdown) => "the guest shut down before its command ended",
        Some(StopReason::DaemonStopped) => "aegisd stopped before the command ended",
        Some(StopReason::VmmDied) => "the VM was lost before its command ended",
        Some(StopReason::GuestFault) => "the guest broke the rules of its link and was stopped",
        Some(StopReason::NeverStarted | StopReason::Exited) | None => "it is not known how the command ended",
    };
    let mut error = CliError::new(Kind::VmFailed, text);
    if let Some(cause) = last_error {
        error = error.cause(cause);
    }
    let news: Vec<&str> = system.iter().map(String::as_str).filter(|line| !says(last_error, line)).collect();
    if !news.is_empty() {
        error = error.cause(news.join("\n"));
    }
    Err(match reason {
        Some(StopReason::BootFailed) => error.hint("`aegis doctor` checks what VMs need"),
        _ => error,
    })
}

fn not_run(kind: Kind, command: &[String], cause: &str) -> CliError {
    let program = command.first().map_or("", String::as_str);
    CliError::new(kind, format!("cannot run `{program}`")).cause(cause)
}

/// The line adds nothing to the error.
fn says(error: Option<&str>, line: &str) -> bool {
    error.is_some_and(|error| line.strip_prefix("boot failed: ").unwrap_or(line) == error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn info(extra: &str) -> InstanceInfo {
        let text = format!(
            r#"{{"id":"inst-1","state":"stopped","enabled":true,"command":["x"],"image_ref":"base","memory_mb":512,
            "vcpus":1,"created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z","active_execs":0{extra}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn judge(logged: Option<u8>, info: Option<&InstanceInfo>) -> Result<u8, CliError> {
        let system = ["boot failed: no kernel", "panic"].map(str::to_owned);
        verdict(&["x".to_owned()], logged, info, &system)
    }

    #[test]
    fn the_log_is_enough_and_the_instance_is_preferred() {
        assert_eq!(judge(Some(3), None), Ok(3));
        assert_eq!(judge(Some(3), Some(&info(""))), Ok(3));
        assert_eq!(judge(Some(3), Some(&info(r#","exit_code":4,"stop_reason":"exited""#))), Ok(4));
    }

    #[test]
    fn a_command_that_could_not_be_run_says_why() {
        let info = info(r#","exit_code":127,"stop_reason":"exited","last_error":"not in PATH""#);
        let error = judge(Some(127), Some(&info)).unwrap_err();
        assert_eq!((error.kind(), error.causes()), (Kind::CommandNotFound, &["not in PATH".to_owned()][..]));
        assert_eq!(judge(Some(127), None), Ok(127));
    }

    #[test]
    fn a_failed_boot_shows_the_error_once_and_the_console() {
        let info = info(r#","stop_reason":"boot_failed","last_error":"no kernel""#);
        let error = judge(None, Some(&info)).unwrap_err();
        assert_eq!(error.kind(), Kind::VmFailed);
        assert_eq!(error.causes(), ["no kernel", "panic"]);
    }
}
