//! `aegis exec`.

use std::time::Duration;

use aegis_api::{ExecDone, ExecRequest};
use aegis_client::ExecEvent;

use super::Context;
use crate::args::Exec;
use crate::error::{CliError, Kind};
use crate::guest_output::GuestOutput;
use crate::suggest::explain;
use crate::ui;

pub(crate) async fn run(context: &Context, args: Exec) -> Result<u8, CliError> {
    let target = args.target.target.as_str();
    let request = ExecRequest {
        command: args.command,
        env: args.env.into_iter().collect(),
        workdir: args.workdir,
        timeout_ms: args.timeout.map(ui::milliseconds),
    };
    let mut events = match context.client.exec(target, &request).await {
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
    if let Some(error) = failure(target, &request, &done) {
        ui::report(&error);
    }
    Ok(done.exit_code)
}

fn lost(target: &str) -> CliError {
    CliError::new(Kind::VmFailed, format!("lost the command in instance `{target}`"))
        .hint(format!("`aegis logs {target}` may show the rest of its output"))
}

/// What to say about a command that did not end by itself.
fn failure(target: &str, request: &ExecRequest, done: &ExecDone) -> Option<CliError> {
    let timeout = request.timeout_ms.filter(|_| done.exit_code == Kind::Timeout.exit_code());
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
