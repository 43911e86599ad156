//! One module per command.

mod attach;
mod bench;
mod completions;
mod cp;
mod doctor;
mod exec;
mod image;
mod inspect;
mod instance;
mod lifetime;
mod logs;
mod net;
mod registry;
mod run;
mod secret;
mod service;
mod shell;
mod stats;
mod status;
mod template;
mod update;
mod workspace;

use std::path::PathBuf;

use aegis_api::{CreateInstance, ExposeRequest};
use aegis_client::Client;
use aegis_config::Home;
use aegis_types::{NetPolicy, WantedSecrets};

use crate::args::{Command, InstanceOptions, Variable};
use crate::error::{CliError, Kind};
use crate::{terminal, ui};

/// What every command needs.
pub(crate) struct Context {
    pub(crate) home: Home,
    pub(crate) client: Client,
}

impl Context {
    fn open(home: Option<PathBuf>) -> Result<Self, CliError> {
        let home = Home::resolve(home)?;
        let client = Client::new(home.socket());
        Ok(Self { home, client })
    }
}

/// Runs a command; the number is the exit code.
pub(crate) async fn run(home: Option<PathBuf>, command: Command) -> Result<u8, CliError> {
    // Not every command needs a home.
    let context = || Context::open(home);
    match command {
        Command::Up => lifetime::up(&context()?).await.map(|()| 0),
        Command::Down(args) => lifetime::down(&context()?, args.stop).await.map(|()| 0),
        Command::Status(format) => status::run(&context()?, format.json).await.map(|()| 0),
        Command::Service { command } => service::run(&context()?, command).await.map(|()| 0),
        Command::Doctor(format) => doctor::run(&context()?, format.json).await,
        Command::Run(args) => run::run(&context()?, *args).await,
        Command::Instance { command } => instance::run(&context()?, command).await,
        Command::Exec(args) => exec::run(&context()?, args).await,
        Command::Shell(args) => shell::run(&context()?, args).await,
        Command::Attach(args) => attach::run(&context()?, args).await,
        Command::Cp(args) => cp::run(&context()?, args).await,
        Command::Inspect { name, json: _ } => inspect::run(&context()?, &name).await.map(|()| 0),
        Command::Update(args) => update::run(&context()?, args).await.map(|()| 0),
        Command::Logs(args) => logs::run(&context()?, args).await.map(|()| 0),
        Command::Net { command } => net::run(&context()?, command).await.map(|()| 0),
        Command::Image { command } => image::run(&context()?, command).await,
        Command::Registry { command } => registry::run(&context()?, command).await.map(|()| 0),
        Command::Template { command } => template::run(&context()?, command).await.map(|()| 0),
        Command::Workspace { command } => workspace::run(&context()?, command).await,
        Command::Secret { command } => secret::run(&context()?, command).await,
        Command::Stats { target, format } => {
            stats::run(&context()?, target.as_deref(), format.json).await.map(|()| 0)
        }
        Command::Bench { args } => Err(bench::run(&context()?, args)),
        Command::Completions { shell } => completions::run(shell).map(|()| 0),
        Command::Version => ui::print(&version_line()).map(|()| 0),
    }
}

fn version_line() -> String {
    format!("aegis {}\n", env!("CARGO_PKG_VERSION"))
}

/// The request that these options describe.
fn creation(options: InstanceOptions, command: Vec<String>) -> Result<CreateInstance, CliError> {
    let net = match &options.net[..] {
        [] => None,
        policies => {
            let policy = NetPolicy::parse(policies);
            Some(policy.map_err(|e| {
                CliError::new(Kind::Usage, "the `--net` options contradict each other").because(&e)
            })?)
        }
    };
    let (mut env, mut secrets) = (options.env_literal, options.secret);
    for variable in options.env {
        match variable {
            Variable::Literal(name, value) => env.push((name, value)),
            Variable::Secret(wanted) => secrets.push(wanted),
        }
    }
    // Told here, where the options are known by name.
    let wanted = WantedSecrets { variables: secrets, files: options.secret_file };
    let wanted = wanted.checked().map_err(|e| {
        CliError::new(Kind::Usage, "the options for secrets contradict each other").because(&e)
    })?;
    let mut env = env.into_iter().collect();
    if options.streams.tty {
        terminal::name_in(&mut env);
    }
    Ok(CreateInstance {
        command,
        handle: options.name,
        image_ref: options.image,
        pull: options.pull,
        oci_defaults: options.oci_defaults,
        env,
        secrets: wanted.variables,
        secret_files: wanted.files,
        workdir: options.workdir,
        user: options.user,
        tty: options.streams.tty,
        stdin: options.streams.interactive,
        memory_mb: options.memory,
        disk_mb: options.disk,
        vcpus: options.cpus,
        exposes: options.expose.into_iter().map(ExposeRequest::from).collect(),
        workspace_read_only: options.workspace.as_ref().is_some_and(|workspace| workspace.read_only),
        workspace: options.workspace.map(|workspace| workspace.source),
        mounts: options.mount,
        net,
        host_ports: options.host_port,
        pause_after_ms: options.pause_after.map(ui::milliseconds),
        hibernate_after_ms: options.hibernate_after.map(ui::milliseconds),
        never_pause: options.never_pause,
        no_hibernate: options.no_hibernate,
        max_lifetime_ms: options.max_lifetime.map(ui::milliseconds),
        ..CreateInstance::default()
    })
}
