//! `aegis net`.

use aegis_api::{NetRuleRequest, NetStatus};
use aegis_types::{NetEvent, NetMode, NetRule};

use super::Context;
use crate::args::NetCommand;
use crate::error::CliError;
use crate::suggest::explain;
use crate::ui;

pub(crate) async fn run(context: &Context, command: NetCommand) -> Result<(), CliError> {
    match command {
        NetCommand::Show { target, format } => {
            let status = explained(context, &target.target, context.client.net(&target.target).await).await?;
            if format.json { ui::print_json(&status) } else { ui::print(&shown(&status)) }
        }
        NetCommand::Allow { target, rules } => add(context, &target, true, rules).await,
        NetCommand::Deny { target, rules } => add(context, &target, false, rules).await,
        NetCommand::Log { target, denied, follow, format } => {
            let target = target.target.as_str();
            let events = context.client.net_log(target, denied, follow).await;
            let mut events = explained(context, target, events).await?;
            while let Some(event) = events.next().await? {
                let line = if format.json { ui::json_line(&event)? } else { line(&event) };
                ui::print(&line)?;
            }
            Ok(())
        }
    }
}

async fn explained<T>(
    context: &Context,
    target: &str,
    answer: Result<T, aegis_client::ClientError>,
) -> Result<T, CliError> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(error) => Err(explain(&context.client, target, error).await),
    }
}

async fn add(context: &Context, target: &str, allow: bool, rules: Vec<NetRule>) -> Result<(), CliError> {
    let mut status = NetStatus::default();
    for rule in rules {
        let request = NetRuleRequest { allow, rule };
        status = explained(context, target, context.client.add_net_rule(target, &request).await).await?;
    }
    if status.policy.mode == NetMode::None {
        ui::warn("the instance was created without a network: rules change nothing");
    }
    ui::print(&format!("Network of {target}: {}\n", status.policy))
}

fn shown(status: &NetStatus) -> String {
    let ports: Vec<String> = status.host_ports.iter().map(ToString::to_string).collect();
    let fields = [
        Some(("Policy", status.policy.to_string())),
        (!ports.is_empty()).then(|| ("Host Ports", ports.join(", "))),
    ];
    ui::fields(&fields.into_iter().flatten().collect::<Vec<_>>())
}

/// One event as a line.
fn line(event: &NetEvent) -> String {
    let verdict = if event.allowed { "allowed" } else { "denied " };
    let mut line = format!("{}  {verdict}  {:<4}  {}", ui::time(event.ts), event.protocol, event.destination);
    if let Some(name) = &event.name {
        line.push_str(&format!(" ({name})"));
    }
    if let Some(reason) = &event.reason {
        line.push_str(&format!(": {reason}"));
    }
    if event.left_out > 0 {
        line.push_str(&format!("  [{} before it are not shown]", event.left_out));
    }
    line.push('\n');
    line
}
