//! `aegis instance`.

mod info;
mod keepalive;
mod ports;
mod wait;

use aegis_api::{CreateInstance, Endpoint, InstanceInfo, InstanceSummary};
use aegis_client::{Action, Creation};
use aegis_types::{Handle, InstanceId, InstanceState};

pub(super) use self::ports::{exposed, warn_of_problems};
use super::{Context, creation};
use crate::args::{InstanceCommand, List, Start};
use crate::error::CliError;
use crate::suggest::explain;
use crate::ui;

pub(crate) async fn run(context: &Context, command: InstanceCommand) -> Result<u8, CliError> {
    match command {
        InstanceCommand::Start(args) => start(context, *args).await?,
        InstanceCommand::Stop(t) => act(context, &t.target, Action::Stop, "stopped").await?,
        InstanceCommand::Restart(t) => act(context, &t.target, Action::Restart, "restarting").await?,
        InstanceCommand::List(args) => list(context, &args).await?,
        InstanceCommand::Info { target, format } => info::run(context, &target.target, format.json).await?,
        InstanceCommand::Disable(t) => act(context, &t.target, Action::Disable, "disabled").await?,
        InstanceCommand::Delete { targets } => return delete(context, &targets).await,
        InstanceCommand::Pause(t) => act(context, &t.target, Action::Pause, "paused").await?,
        InstanceCommand::Resume(t) => act(context, &t.target, Action::Resume, "resumed").await?,
        InstanceCommand::Hibernate(t) => act(context, &t.target, Action::Hibernate, "hibernated").await?,
        InstanceCommand::Wait(args) => wait::run(context, args).await?,
        InstanceCommand::Expose { target, port } => ports::expose(context, &target.target, port).await?,
        InstanceCommand::Unexpose { target, port } => ports::unexpose(context, &target.target, port).await?,
        InstanceCommand::Keepalive(args) => keepalive::run(context, args).await?,
        InstanceCommand::Prune { stopped_older_than } => {
            let reply = context.client.prune(&stopped_older_than).await?;
            ui::print(&format!("Pruned {} stopped instance(s)\n", reply.pruned))?;
        }
    }
    Ok(0)
}

async fn act(context: &Context, target: &str, action: Action, done: &str) -> Result<(), CliError> {
    match context.client.action(target, action).await {
        Ok(_) => ui::print(&format!("Instance {target} {done}\n")),
        Err(error) => Err(explain(&context.client, target, error).await),
    }
}

async fn start(context: &Context, args: Start) -> Result<(), CliError> {
    if let Some(target) = &args.target {
        let info = get(context, target).await?;
        if info.state == InstanceState::Running {
            return ui::print(&format!("Instance already running: {}\n", info.id));
        }
        context.client.action(target, Action::Start).await?;
        started("restarted", &info.id, info.handle.as_ref(), &info.endpoints)?;
        warn_of_problems(&[], &info.endpoints);
        return Ok(());
    }
    let creates = args.options.image.is_some() || args.options.oci_defaults;
    if args.command.is_empty()
        && !creates
        && let Some(name) = &args.options.name
    {
        // Without a command there is nothing to create, so the name must exist.
        get(context, name.as_str()).await?;
    }
    let request = CreateInstance {
        restart: args.restart.unwrap_or_default(),
        idle_policy: args.idle_policy.unwrap_or_default(),
        ..creation(args.options, args.command)?
    };
    let (verb, instance) = match context.client.create(&request).await? {
        Creation::Created(instance) => ("started", instance),
        Creation::Restarted(instance) => ("restarted", instance),
    };
    for warning in &instance.warnings {
        ui::warn(warning);
    }
    started(verb, &instance.id, instance.handle.as_ref(), &instance.endpoints)?;
    warn_of_problems(&request.exposes, &instance.endpoints);
    Ok(())
}

fn started(
    verb: &str,
    id: &InstanceId,
    handle: Option<&Handle>,
    endpoints: &[Endpoint],
) -> Result<(), CliError> {
    let mut text = format!("Instance {verb}: {id}\n");
    if let Some(handle) = handle {
        text.push_str(&format!("Handle: {handle}\n"));
    }
    for endpoint in endpoints {
        text.push_str(&format!("URL:    {}\n", ports::url(endpoint)));
    }
    ui::print(&text)
}

async fn get(context: &Context, target: &str) -> Result<InstanceInfo, CliError> {
    match context.client.get(target).await {
        Ok(info) => Ok(info),
        Err(error) => Err(explain(&context.client, target, error).await),
    }
}

async fn delete(context: &Context, targets: &[String]) -> Result<u8, CliError> {
    let mut code = 0;
    for target in targets {
        match context.client.delete(target).await {
            Ok(_) => ui::print(&format!("Instance {target} deleted\n"))?,
            Err(error) => {
                let error = explain(&context.client, target, error).await;
                ui::report(&error);
                code = error.kind().exit_code();
            }
        }
    }
    Ok(code)
}

async fn list(context: &Context, args: &List) -> Result<(), CliError> {
    let state = if args.running {
        Some(InstanceState::Running)
    } else if args.paused {
        Some(InstanceState::Paused)
    } else if args.hibernated {
        Some(InstanceState::Hibernated)
    } else {
        None
    };
    let mut instances = context.client.list(state).await?;
    if args.stopped {
        let without_vm = [InstanceState::Stopped, InstanceState::Hibernated];
        instances.retain(|instance| without_vm.contains(&instance.state));
    }
    if args.disabled {
        instances.retain(|instance| !instance.enabled);
    }
    if args.format.json {
        return ui::print_json(&instances);
    }
    if instances.is_empty() {
        return ui::print("No instances\n");
    }
    let rows: Vec<_> = instances.iter().map(row).collect();
    ui::print(&ui::table(["ID", "HANDLE", "STATUS", "STATE", "STOPPED AT"], &rows))
}

fn row(instance: &InstanceSummary) -> [String; 5] {
    let none = || "-".to_owned();
    [
        instance.id.to_string(),
        instance.handle.as_ref().map_or_else(none, Handle::to_string),
        if instance.enabled { "enabled" } else { "disabled" }.to_owned(),
        instance.state.to_string(),
        instance.stopped_at.map_or_else(none, ui::time),
    ]
}
