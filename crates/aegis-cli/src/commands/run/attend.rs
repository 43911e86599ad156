//! Following an instance to the end of its command.
//!
//! The log tells everything in order: output, then the line that says how the command ended. A look at the
//! instance now and then guards against the case that this line never comes, as when the VM is lost.

use std::collections::VecDeque;
use std::time::Duration;

use aegis_api::{ErrorCode, InstanceInfo, LogEntry, LogSource, LogStream};
use aegis_client::{Client, ClientError, LogQuery};
use aegis_types::{InstanceId, InstanceState};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::verdict::{self, SYSTEM_LINES};
use crate::error::{CliError, Kind};
use crate::guest_output::GuestOutput;
use crate::limits::Limits;
use crate::progress::Spinner;
use crate::ui;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A stopped instance whose log says nothing for this long will say nothing more.
const QUIET: Duration = Duration::from_millis(200);

/// How the loop ended when nothing went wrong with it.
enum End {
    /// The log gave the exit code; an error right before it.
    Exited(u8, Option<String>),
    /// The instance has stopped.
    Stopped(Box<InstanceInfo>),
}

/// What one turn of the loop saw.
enum Turn {
    Entry(Result<Option<LogEntry>, ClientError>),
    Flushed,
    Look,
}

/// Passes output on until the command has ended; returns its exit code.
pub(super) async fn attend(
    client: &Client,
    id: &InstanceId,
    spinner: &Spinner,
    limits: &mut Limits,
) -> Result<u8, CliError> {
    let query = LogQuery { follow: true, attach: true, ..LogQuery::default() };
    let mut entries = limits.during(client.logs(id.as_str(), &query)).await??;
    let mut output = GuestOutput::new();
    let mut system = VecDeque::new();
    // The last entry, when it was an error of AegisVM.
    let mut failure = None;
    let mut stopped = false;
    let mut look = looks();
    let end = loop {
        let turn = tokio::select! {
            biased;
            end = limits.passed() => return Err(end),
            entry = entries.next() => Turn::Entry(entry),
            flushed = output.flush(), if output.is_pending() => {
                flushed.map_err(|e| ui::output_error(&e))?;
                Turn::Flushed
            }
            _ = look.tick() => Turn::Look,
        };
        match turn {
            Turn::Flushed => {}
            Turn::Entry(Err(error)) => break Err(error.into()),
            Turn::Entry(Ok(None)) => break Err(deleted(id)),
            Turn::Entry(Ok(Some(entry))) => {
                stopped = false;
                let failed = failure.take();
                match entry.source {
                    LogSource::Server => {
                        spinner.clear();
                        let written = limits.during(output.write(entry.stream, &entry.bytes())).await?;
                        written.map_err(|e| ui::output_error(&e))?;
                    }
                    LogSource::System => {
                        if let Some(code) = exit_line(&entry.line) {
                            break Ok(End::Exited(code, failed));
                        }
                        if is_progress(&entry.line) {
                            show_progress(spinner, &entry.line);
                            continue;
                        }
                        spinner.say(&entry.line);
                        if system.len() == SYSTEM_LINES {
                            system.pop_front();
                        }
                        failure = (entry.stream == LogStream::Stderr).then(|| entry.line.clone());
                        system.push_back(entry.line);
                        look.reset_immediately();
                    }
                    LogSource::Exec => {}
                }
            }
            Turn::Look => match limits.during(client.get(id.as_str())).await? {
                Ok(info) if matches!(info.state, InstanceState::Stopped | InstanceState::Hibernated) => {
                    if stopped {
                        break Ok(End::Stopped(Box::new(info)));
                    }
                    stopped = true;
                    look.reset_after(QUIET);
                }
                Ok(info) if info.state == InstanceState::Running => spinner.clear(),
                Err(ClientError::Api { body, .. }) if body.code == ErrorCode::InstanceNotFound => {
                    break Err(deleted(id));
                }
                // A daemon in trouble ends the log as well.
                _ => {}
            },
        }
    };
    spinner.clear();
    limits.during(output.flush()).await?.map_err(|e| ui::output_error(&e))?;
    match end? {
        End::Exited(code, failure) => verdict::ended(code, failure.as_deref()),
        End::Stopped(info) => verdict::stopped(&info, system.make_contiguous()),
    }
}

fn looks() -> Interval {
    let mut look = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look
}

fn deleted(id: &InstanceId) -> CliError {
    CliError::new(Kind::VmFailed, format!("instance `{id}` was deleted while its command ran"))
}

/// `process exited (code=N)`, the line that ends every run.
fn exit_line(line: &str) -> Option<u8> {
    line.strip_prefix("process exited (code=")?.split_once(')')?.0.parse().ok()
}

/// A line about a download: news, but no reason for anything.
fn is_progress(line: &str) -> bool {
    let stage = line.strip_prefix("image ").and_then(|rest| rest.split_once(": "));
    stage.is_some_and(|(stage, _)| matches!(stage, "resolving" | "downloading" | "unpacking" | "ready"))
}

/// Where there is no terminal with a spinner, a line of its own.
fn show_progress(spinner: &Spinner, line: &str) {
    if spinner.is_hidden() {
        ui::eprint(&format!("[system] {line}\n"));
    } else {
        spinner.say(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_are_told_from_what_goes_wrong() {
        for line in
            ["image resolving: python", "image downloading: python (1 MiB of 2 MiB)", "image ready: a:b"]
        {
            assert!(is_progress(line), "{line}");
        }
        for line in ["cannot pull image `python`: no", "image broken: python", "booted"] {
            assert!(!is_progress(line), "{line}");
        }
    }

    #[test]
    fn only_the_exit_line_ends_a_run() {
        assert_eq!(exit_line("process exited (code=0)"), Some(0));
        assert_eq!(exit_line("process exited (code=137)"), Some(137));
        for other in
            ["process exited", "process exited (code=x)", " process exited (code=0)", "boot failed: x"]
        {
            assert_eq!(exit_line(other), None, "{other}");
        }
    }
}
