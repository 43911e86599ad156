//! `aegis registry`.

use std::io::{BufRead as _, IsTerminal as _};

use aegis_api::{RegistryLogin, RegistrySummary};

use super::Context;
use crate::args::RegistryCommand;
use crate::error::{CliError, Kind};
use crate::signals::Signals;
use crate::{secret_input, ui};

pub(crate) async fn run(context: &Context, command: RegistryCommand) -> Result<(), CliError> {
    match command {
        RegistryCommand::Login { registry, username, password_stdin } => {
            login(context, registry, username, password_stdin).await
        }
        RegistryCommand::Logout { registry } => {
            context.client.logout(&registry).await?;
            ui::print(&format!("Logged out of {registry}\n"))
        }
        RegistryCommand::List(format) => list(context, format.json).await,
    }
}

async fn login(
    context: &Context,
    registry: String,
    username: Option<String>,
    password_stdin: bool,
) -> Result<(), CliError> {
    let asks = std::io::stdin().is_terminal();
    if username.is_none() && (password_stdin || !asks) {
        return Err(CliError::new(Kind::Usage, "a user name is needed: `--username USER`"));
    }
    if !password_stdin && !asks {
        let error = CliError::new(Kind::Usage, "there is no terminal to ask for the password");
        return Err(error.hint("send it through a pipe with `--password-stdin`"));
    }
    let mut signals = Signals::listen()?;
    let place = registry.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let username = username.map_or_else(|| ask(&format!("User name at {place}: ")), Ok)?;
        let prompt = (!password_stdin).then(|| format!("Password of {username} at {place}: "));
        let password = secret_input::standard_input(prompt)?;
        Ok::<_, CliError>(RegistryLogin { registry: place, username, password })
    });
    let login = tokio::select! {
        login = reading => login.unwrap_or_else(|e| Err(CliError::from_error(&e)))?,
        signal = signals.next() => {
            secret_input::show_again();
            return Err(signal);
        }
    };
    if login.password.expose().is_empty() {
        return Err(CliError::failure("the password is empty"));
    }
    let kept = context.client.login(&login).await?;
    ui::print(&format!("Logged in to {} as {}\n", kept.registry, login.username))
}

/// A line from the terminal.
fn ask(prompt: &str) -> Result<String, CliError> {
    ui::eprint(prompt);
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|e| CliError::failure("cannot read standard input").because(&e))?;
    match line.trim() {
        "" => Err(CliError::failure("the user name is empty")),
        name => Ok(name.to_owned()),
    }
}

async fn list(context: &Context, json: bool) -> Result<(), CliError> {
    let registries = context.client.registries().await?;
    if json {
        return ui::print_json(&registries);
    }
    if registries.is_empty() {
        return ui::print("Logged in to no registry\n");
    }
    let rows: Vec<_> = registries.into_iter().map(row).collect();
    ui::print(&ui::table(["REGISTRY", "USER"], &rows))
}

fn row(login: RegistrySummary) -> [String; 2] {
    [login.registry, login.username.unwrap_or_else(|| "-".to_owned())]
}
