//! `aegis exec`.

use std::time::Duration;

use aegis_api::{AttachedExec, ExecDone, ExecRequest};
use aegis_client::ExecEvent;

use super::Context;
use crate::args::{Exec, Streams};
use crate::detach_keys::DetachKeys;
use crate::error::{CliError, Kind};
use crate::guest_output::GuestOutput;
use crate::limits::Limits;
use crate::signals::Signals;
use crate::streams::{self, Ended, Plan};
use crate::suggest::explain;
use crate::{terminal, ui};

pub(crate) async fn run(context: &Context, args: Exec) -> Result<u8, CliError> {
    let target = args.target.target.as_str();
    let request = ExecRequest {
        command: args.command,
        env: args.env.into_iter().collect(),
        workdir: args.workdir,
        user: args.user,
        timeout_ms: args.timeout.map(ui::milliseconds),
    };
    match args.streams {
        Streams { interactive: false, tty: false } => with_output(context, target, &request).await,
        streams => with_streams(context, target, request, streams, &args.detach_keys).await,
    }
}

/// Its output is also in the log, and so it comes as the log has it.
async fn with_output(context: &Context, target: &str, request: &ExecRequest) -> Result<u8, CliError> {
    let mut events = match context.client.exec(target, request).await {
        Ok(events) => events,
        Err(error) => return Err(explain(&context.client, target, error).await),
    };
    let mut output = GuestOutput::new();
    let done = loop {
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            flushed = output.flush(), if output.is_pending() => {
                flushed.map_err(|e| ui::output_error(&e))?;
                continue;
            }
        };
        match event {
            Ok(Some(ExecEvent::Started(_))) => {}
            Ok(Some(ExecEvent::Entry(entry))) => {
                output.write(entry.stream, &entry.bytes()).await.map_err(|e| ui::output_error(&e))?;
            }
            Ok(Some(ExecEvent::Done(done))) => break done,
            Ok(None) => return Err(lost(target)),
            Err(error) => {
                output.flush().await.map_err(|e| ui::output_error(&e))?;
                return Err(lost(target).because(&error));
            }
        }
    };
    output.flush().await.map_err(|e| ui::output_error(&e))?;
    Ok(ended(target, request.timeout_ms, &done))
}

/// Joins the command and us, see [`streams`].
pub(super) async fn with_streams(
    context: &Context,
    target: &str,
    mut exec: ExecRequest,
    Streams { interactive, tty }: Streams,
    keys: &DetachKeys,
) -> Result<u8, CliError> {
    if tty {
        terminal::required("leave out `-t`")?;
        terminal::name_in(&mut exec.env);
    }
    let mut limits = Limits::new(Signals::listen()?, None);
    let request = AttachedExec {
        exec,
        stdin: interactive,
        tty: tty.then(|| terminal::size().unwrap_or(terminal::UNKNOWN)),
    };
    let process = match limits.during(context.client.exec_attached(target, &request)).await? {
        Ok(process) => process,
        Err(error) => return Err(explain(&context.client, target, error).await),
    };
    let raw = (interactive && tty).then_some(keys);
    let plan = Plan {
        stdin: interactive,
        size: request.tty,
        raw,
        // The keys of a terminal in raw mode are signals inside of the guest.
        forward_signals: raw.is_none(),
        leave_alone: false,
    };
    match streams::join(process, &plan, &mut limits, || {}).await? {
        Ended::Done(done) => Ok(ended(target, request.exec.timeout_ms, &done)),
        Ended::Lost(error) => Err(lost(target).because(&error)),
        Ended::Detached => {
            ui::eprint(&format!("\nDetached: the command goes on in instance `{target}`\n"));
            Ok(0)
        }
    }
}

/// The exit code, after saying why the command did not end by itself if that is so.
pub(super) fn ended(target: &str, timeout_ms: Option<u64>, done: &ExecDone) -> u8 {
    if let Some(error) = failure(target, timeout_ms, done) {
        ui::report(&error);
    }
    done.exit_code
}

pub(super) fn lost(target: &str) -> CliError {
    CliError::new(Kind::VmFailed, format!("lost the command in instance `{target}`"))
        .hint(format!("`aegis logs {target}` may show the rest of its output"))
}

fn failure(target: &str, timeout_ms: Option<u64>, done: &ExecDone) -> Option<CliError> {
    let timeout = timeout_ms.filter(|_| done.exit_code == Kind::Timeout.exit_code());
    match (&done.error, timeout) {
        (_, Some(ms)) => {
            let limit = ui::in_words(Duration::from_millis(ms));
            Some(CliError::failure(format!("the command did not end within {limit}")))
        }
        (Some(cause), None) if done.exit_code == Kind::VmFailed.exit_code() => {
            Some(lost(target).cause(cause.clone()))
        }
        (Some(message), None) => Some(CliError::failure(message.clone())),
        (None, None) => None,
    }
}
