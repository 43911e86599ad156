//! `aegis service`: the daemon under the service manager of the user.
//!
//! A [`Service`] says what is to be run; the manager of the platform has a module that writes it down and hands it over.

#[cfg(any(target_os = "macos", test))]
mod launchd;
#[cfg(any(not(target_os = "macos"), test))]
mod systemd;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;

use aegis_config::env::{Environment, PATH};
use aegis_config::{Asset, Home, locate};
use tokio::process::Command;

#[cfg(target_os = "macos")]
use self::launchd::Launchd as Manager;
#[cfg(not(target_os = "macos"))]
use self::systemd::Systemd as Manager;
use super::Context;
use crate::args::ServiceCommand;
use crate::error::CliError;
use crate::ui;

pub(crate) async fn run(context: &Context, command: ServiceCommand) -> Result<(), CliError> {
    match command {
        ServiceCommand::Install { print: true } => ui::print(&Manager::text(&Service::of(&context.home)?)?),
        ServiceCommand::Install { print: false } => install(context).await,
        ServiceCommand::Uninstall => uninstall(context).await,
    }
}

/// What the service manager is to run. Every path is absolute.
struct Service {
    /// Tells the services of several homes apart; empty for the one of the default home.
    suffix: String,
    program: PathBuf,
    home: PathBuf,
    log: PathBuf,
    /// Where the daemon finds the VMM.
    path: String,
}

impl Service {
    fn of(home: &Home) -> Result<Self, CliError> {
        let environment = Environment::process();
        let program = locate(Asset::Daemon, None, home)?.path;
        let absolute = |path: PathBuf| {
            std::path::absolute(&path)
                .map_err(|e| CliError::failure(format!("cannot find {}", path.display())).because(&e))
        };
        let is_default = environment.user_home().is_some_and(|user| user.join(".aegis") == home.root());
        Ok(Self {
            suffix: if is_default { String::new() } else { suffix(home) },
            program: absolute(program)?,
            home: home.root().to_owned(),
            log: home.daemon_log(),
            path: environment.get(PATH).and_then(|path| path.into_string().ok()).unwrap_or_default(),
        })
    }
}

/// The path of the home in letters that every service manager takes.
fn suffix(home: &Home) -> String {
    let text = home.root().to_string_lossy();
    let plain = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    format!("-{}", plain.collect::<String>().trim_matches('-'))
}

async fn install(context: &Context) -> Result<(), CliError> {
    let service = Service::of(&context.home)?;
    let manager = Manager::find(&service).await?;
    if !manager.runs().await && context.client.status().await.is_ok() {
        return Err(CliError::failure("cannot install the service: aegisd runs already").hint(
            "`aegis down` stops it; running instances are hibernated and wake again when they are needed",
        ));
    }
    context.home.ensure()?;
    manager.install(&Manager::text(&service)?).await?;
    ui::print(&format!(
        "aegisd is started by {} from now on ({})\n",
        Manager::NAME,
        manager.file().display()
    ))?;
    if let Some(hint) = manager.boot_hint().await {
        ui::print(&hint)?;
    }
    Ok(())
}

async fn uninstall(context: &Context) -> Result<(), CliError> {
    let service = Service::of(&context.home)?;
    let manager = Manager::find(&service).await?;
    if !manager.file().exists() {
        return ui::print("The service is not installed\n");
    }
    manager.uninstall().await?;
    ui::print("The service is removed, and aegisd is stopped\n")
}

/// Writes the file of a service, with the directory that it is in.
fn write(path: &std::path::Path, text: &str) -> Result<(), CliError> {
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
        // Never half of it: the manager may look at any time.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text)?;
        std::fs::rename(&fresh, path)
    });
    written.map_err(|e| CliError::failure(format!("cannot write {}", path.display())).because(&e))
}

fn remove(path: &std::path::Path) -> Result<(), CliError> {
    std::fs::remove_file(path)
        .map_err(|e| CliError::failure(format!("cannot remove {}", path.display())).because(&e))
}

/// Runs a program of the service manager; its output, or what it complains of.
async fn call(program: &str, args: &[&OsStr]) -> Result<String, CliError> {
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let shown = format!("{program} {}", words.join(" "));
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().await;
    let output = output.map_err(|e| CliError::failure(format!("cannot run `{shown}`")).because(&e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = CliError::failure(format!("`{shown}` failed ({})", output.status));
    match String::from_utf8_lossy(&output.stderr).trim() {
        "" => Err(error),
        text => Err(error.cause(text)),
    }
}
