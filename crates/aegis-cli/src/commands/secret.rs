//! `aegis secret`.

use std::io::IsTerminal as _;

use aegis_api::{AuditEntry, InstanceSecrets, SetSecret};
use aegis_types::SecretBytes;

use super::Context;
use crate::args::{SecretCommand, SecretSource};
use crate::error::{CliError, Kind};
use crate::signals::Signals;
use crate::suggest::explain;
use crate::{secret_input, ui};

pub(crate) async fn run(context: &Context, command: SecretCommand) -> Result<u8, CliError> {
    match command {
        SecretCommand::Set { name, source } => {
            let value = read(name.as_str(), source).await?;
            context.client.set_secret(&name, &SetSecret { value }).await?;
            ui::print(&format!("Secret {name} set\n"))?;
        }
        SecretCommand::List(format) => list(context, format.json).await?,
        SecretCommand::Delete { names } => return delete(context, &names).await,
        SecretCommand::Get { name, reveal: _ } => {
            let value = context.client.reveal_secret(&name).await?.value;
            ui::print_bytes(value.expose())?;
            // The next prompt belongs on a line of its own.
            if std::io::stdout().is_terminal() && !value.expose().ends_with(b"\n") {
                ui::print("\n")?;
            }
        }
        SecretCommand::Assign { target, secrets, secret_file, none: _ } => {
            let secrets = InstanceSecrets { secrets, secret_files: Some(secret_file) };
            assign(context, &target.target, &secrets).await?;
        }
        SecretCommand::RotateKey => {
            let rotated = context.client.rotate_key().await?;
            ui::print(&format!("Master key changed; {} secret(s) encrypted anew\n", rotated.secrets))?;
        }
        SecretCommand::Audit { instance, format } => audit(context, instance, format.json).await?,
    }
    Ok(0)
}

async fn read(name: &str, source: SecretSource) -> Result<SecretBytes, CliError> {
    let value = match source {
        SecretSource { file: Some(path), .. } => secret_input::file(&path)?,
        SecretSource { value: Some(value), .. } if value != "-" => {
            ui::warn(
                "a value on the command line is in the history of the shell, and others could see it meanwhile",
            );
            SecretBytes::from(value)
        }
        SecretSource { value, .. } => {
            let mut signals = Signals::listen()?;
            let prompt = value.is_none().then(|| format!("Value of {name}: "));
            let reading = tokio::task::spawn_blocking(move || secret_input::standard_input(prompt));
            tokio::select! {
                value = reading => value.unwrap_or_else(|e| Err(CliError::from_error(&e)))?,
                signal = signals.next() => {
                    secret_input::show_again();
                    return Err(signal);
                }
            }
        }
    };
    if value.expose().is_empty() {
        return Err(CliError::new(Kind::Failure, format!("the value of secret `{name}` is empty")));
    }
    Ok(value)
}

async fn list(context: &Context, json: bool) -> Result<(), CliError> {
    let secrets = context.client.secrets().await?;
    if json {
        return ui::print_json(&secrets);
    }
    if secrets.is_empty() {
        return ui::print("No secrets\n");
    }
    let lines: String = secrets.iter().map(|secret| format!("  {}\n", secret.name)).collect();
    ui::print(&format!("Secrets:\n{lines}"))
}

async fn delete(context: &Context, names: &[aegis_types::SecretName]) -> Result<u8, CliError> {
    let mut code = 0;
    for name in names {
        match context.client.delete_secret(name).await {
            Ok(_) => ui::print(&format!("Secret {name} deleted\n"))?,
            Err(error) => {
                let error = CliError::from(error);
                ui::report(&error);
                code = error.kind().exit_code();
            }
        }
    }
    Ok(code)
}

async fn assign(context: &Context, target: &str, secrets: &InstanceSecrets) -> Result<(), CliError> {
    let assigned = match context.client.assign_secrets(target, secrets).await {
        Ok(assigned) => assigned,
        Err(error) => return Err(explain(&context.client, target, error).await),
    };
    for warning in &assigned.warnings {
        ui::warn(warning);
    }
    let mut text = match ui::secrets(&assigned.secret_keys, &assigned.secret_files) {
        Some(gets) => format!("Instance {target} gets {gets}\n"),
        None => format!("Instance {target} gets no secrets\n"),
    };
    if assigned.restart_required {
        text.push_str(&format!(
            "It has what it was started with until its next boot: `aegis instance restart {target}`\n"
        ));
    }
    ui::print(&text)
}

async fn audit(context: &Context, instance: Option<String>, json: bool) -> Result<(), CliError> {
    let mut entries = context.client.audit().await?;
    if let Some(wanted) = instance {
        entries.retain(|entry| {
            let id = entry.instance_id.as_ref().map(|id| id.as_str());
            id == Some(&wanted) || entry.handle.as_ref().map(|handle| handle.as_str()) == Some(&wanted)
        });
    }
    if json {
        return ui::print_json(&entries);
    }
    if entries.is_empty() {
        return ui::print("Nothing was done with secrets\n");
    }
    let rows: Vec<_> = entries.iter().map(row).collect();
    ui::print(&ui::table(["TIME", "EVENT", "INSTANCE", "SECRETS"], &rows))
}

fn row(entry: &AuditEntry) -> [String; 4] {
    let id = entry.instance_id.as_ref().map(ToString::to_string);
    let instance = entry.handle.as_ref().map(ToString::to_string).or(id);
    [
        ui::time(entry.ts),
        entry.event.to_string(),
        instance.unwrap_or_else(|| "-".to_owned()),
        if entry.secrets.is_empty() { "-".to_owned() } else { entry.secrets.join(" ") },
    ]
}
