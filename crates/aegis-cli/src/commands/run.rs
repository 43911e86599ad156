//! `aegis run`: create, follow, delete.
//!
//! **Invariant:** once the create request was sent, every way out deletes the instance first: the end of the
//! command, errors, signals, a closed pipe. Only the detach keys, a second signal while deleting, or a daemon that is gone
//! leaves it behind, and that is said.

mod attached;
mod attend;
mod verdict;

use std::pin::pin;
use std::time::Duration;

use aegis_api::{CreateInstance, ErrorCode};
use aegis_client::{Action, Client, ClientError, Creation};
use aegis_types::{Handle, InstanceId};

use super::instance::{exposed, warn_of_problems};
use super::{Context, creation};
use crate::args::Run;
use crate::daemon;
use crate::error::CliError;
use crate::limits::Limits;
use crate::progress::Spinner;
use crate::signals::Signals;
use crate::{terminal, ui};

pub(crate) async fn run(context: &Context, args: Run) -> Result<u8, CliError> {
    let mut signals = Signals::listen()?;
    // The options are those of every instance.
    if args.options.pause_after.is_some() || args.options.hibernate_after.is_some() {
        ui::warn(
            "--pause-after and --hibernate-after have no effect: a run is not idle while it is followed",
        );
    }
    let request = CreateInstance { ephemeral: true, ..creation(args.options, args.command)? };
    if request.tty {
        terminal::required("leave out `-t`")?;
    }
    let spinner = Spinner::start("starting aegisd");
    let prepared = tokio::select! {
        prepared = prepare(context, request.handle.as_ref()) => prepared,
        signal = signals.next() => Err(signal),
    };
    prepared?;

    spinner.say("booting");
    let (id, interrupted) = create(&context.client, &request, &spinner, &mut signals).await?;
    let mut limits = Limits::new(signals, args.timeout);
    let outcome = match interrupted {
        Some(signal) => Err(signal),
        None if request.stdin || request.tty => {
            let keys = &args.detach_keys;
            attached::attend(&context.client, &id, &request, keys, &spinner, &mut limits).await
        }
        None => attend::attend(&context.client, &id, &spinner, &mut limits).await.map(End::Exited),
    };
    spinner.clear();
    let outcome = match outcome {
        Ok(End::Detached) => {
            leave(&id, args.timeout);
            return Ok(0);
        }
        Ok(End::Exited(code)) => Ok(code),
        Err(error) => Err(error),
    };
    // What happened comes before what became of the instance.
    let code = outcome.unwrap_or_else(|error| {
        ui::report(&error);
        error.kind().exit_code()
    });
    delete(&context.client, &id, &mut limits.signals).await;
    Ok(code)
}

/// How a run ended when nothing went wrong.
enum End {
    /// The command has this exit code.
    Exited(u8),
    /// The user has left it.
    Detached,
}

/// What happens to the instance is in the hands of the user now.
fn leave(id: &InstanceId, timeout: Option<Duration>) {
    let mut text = format!(
        "\nDetached from instance `{id}`, which goes on; `aegis attach {id}` attaches again, \
         `aegis instance delete {id}` deletes it\n"
    );
    if timeout.is_some() {
        text.push_str("`--timeout` ends with `aegis run`\n");
    }
    ui::eprint(&text);
}

/// Sees to it that the daemon runs and that the name is free: an instance that is there must not be deleted.
async fn prepare(context: &Context, name: Option<&Handle>) -> Result<(), CliError> {
    daemon::start(&context.home, &context.client).await?;
    let Some(name) = name else { return Ok(()) };
    match context.client.get(name.as_str()).await {
        Ok(_) => Err(taken(name)),
        Err(ClientError::Api { body, .. }) if body.code == ErrorCode::InstanceNotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn taken(name: &Handle) -> CliError {
    CliError::failure(format!("there is already an instance named `{name}`"))
        .hint("choose another name; `aegis run` deletes its instance at the end")
        .hint(format!("`aegis instance start {name}` starts the one that is there"))
}

/// Waits for the answer even when a signal arrives, as only the answer tells what to delete.
async fn create(
    client: &Client,
    request: &CreateInstance,
    spinner: &Spinner,
    signals: &mut Signals,
) -> Result<(InstanceId, Option<CliError>), CliError> {
    let mut answer = pin!(client.create(request));
    let mut interrupted = None;
    let created = loop {
        tokio::select! {
            biased;
            created = &mut answer => break created?,
            signal = signals.next() => match interrupted {
                None => interrupted = Some(signal),
                Some(_) => return Err(signal),
            },
        }
    };
    let instance = match created {
        Creation::Created(instance) => instance,
        // Somebody made it between our question and our request.
        Creation::Restarted(instance) => {
            client.action(instance.id.as_str(), Action::Stop).await?;
            return Err(match &instance.handle {
                Some(name) => taken(name),
                None => CliError::failure("aegisd started another instance than the one asked for"),
            });
        }
    };
    spinner.aside(|| {
        for warning in &instance.warnings {
            ui::warn(warning);
        }
        for port in &instance.endpoints {
            ui::eprint(&exposed(port.protocol, port.public_port, port.guest_port));
        }
        warn_of_problems(&request.exposes, &instance.endpoints);
    });
    Ok((instance.id, interrupted))
}

async fn delete(client: &Client, id: &InstanceId, signals: &mut Signals) {
    let left = CliError::failure(format!("instance `{id}` was not deleted"))
        .hint(format!("`aegis instance delete {id}` deletes it"));
    let deleted = tokio::select! {
        deleted = client.delete(id.as_str()) => deleted,
        _ = signals.next() => return ui::report(&left.cause("interrupted")),
    };
    match deleted {
        Ok(_) => {}
        Err(ClientError::Api { body, .. }) if body.code == ErrorCode::InstanceNotFound => {}
        Err(error) => ui::report(&left.because(&error)),
    }
}
