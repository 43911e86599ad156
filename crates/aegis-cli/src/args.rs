//! The command line. Doc comments here are the help texts.

use std::path::PathBuf;
use std::time::Duration;

use aegis_types::{Handle, ImageName, Mib, Vcpus, parse_duration};
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;
use jiff::Timestamp;

const EXIT_CODES: &str = "\
Exit codes:
  0      success; of `run` and `exec`: the exit code of the guest's command
  1      error
  2      the command line makes no sense
  124    `--timeout` passed
  125    the VM did not come up or was lost
  126    the guest cannot execute the command
  127    the guest has no such command
  128+N  ended by signal N: the guest's command, or aegis itself (130 is Ctrl-C)";

/// Runs commands in microVMs on this machine, without root
#[derive(Debug, Parser)]
#[command(name = "aegis", version, disable_version_flag = true, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Home directory of AegisVM [default: $AEGIS_HOME or ~/.aegis]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'v', long, short_alias = 'V', action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the daemon
    Up,
    /// Stop the daemon and all VMs
    Down,
    /// Show whether the daemon runs
    Status(Format),
    /// Check the installation and say what to do about problems
    Doctor(Format),
    /// Run a command in a new VM, then delete the VM
    Run(Run),
    /// Manage instances
    Instance {
        #[command(subcommand)]
        command: InstanceCommand,
    },
    /// Run a command in an instance
    Exec(Exec),
    /// Show what an instance has written
    Logs(Logs),
    /// Manage images
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Measure boot, run, exec, pause and resume
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of the benchmark; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<std::ffi::OsString>,
    },
    /// Print a completion script for a shell
    Completions {
        /// Shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Format {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) options: InstanceOptions,
    /// End the run after this time, such as 90s or 5m
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
    /// Program and arguments; no shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InstanceOptions {
    /// Name of the instance, unique; also its host name
    #[arg(long, value_name = "NAME", value_parser = Handle::parse)]
    pub(crate) name: Option<Handle>,
    /// Image
    #[arg(long, value_name = "IMAGE", value_parser = ImageName::parse)]
    pub(crate) image: Option<ImageName>,
    /// Memory in MiB
    #[arg(long, value_name = "MB", value_parser = memory)]
    pub(crate) memory: Option<Mib>,
    /// Virtual CPUs
    #[arg(long, visible_alias = "vcpus", value_name = "N", value_parser = cpus)]
    pub(crate) cpus: Option<Vcpus>,
    /// Environment variable of the command; may be repeated
    #[arg(long, value_name = "K=V", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Working directory in the guest
    #[arg(long, value_name = "DIR", value_parser = guest_dir)]
    pub(crate) workdir: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InstanceCommand {
    /// Start a new instance, or one that was stopped
    #[command(override_usage = "aegis instance start [OPTIONS] -- <COMMAND>...\n       \
                                aegis instance start <INSTANCE>")]
    Start(Start),
    /// Stop the VM of an instance; it is woken when needed
    Stop(Target),
    /// Stop an instance and start it again
    Restart(Target),
    /// List instances
    List(List),
    /// Show everything about an instance
    Info {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Stop an instance and keep it from being woken
    Disable(Target),
    /// Delete instances with everything in them
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "INSTANCE")]
        targets: Vec<String>,
    },
    /// Halt the CPUs of an instance
    Pause(Target),
    /// Let a paused instance go on
    Resume(Target),
    /// Delete instances that have been stopped for long
    Prune {
        /// How long they must have been stopped, such as 12h
        #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = duration_text)]
        stopped_older_than: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Name or id
    #[arg(value_name = "INSTANCE")]
    pub(crate) target: String,
}

/// What describes a new instance makes no sense for one that is there.
const OPTIONS: [&str; 7] = ["command", "name", "image", "memory", "cpus", "env", "workdir"];

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["target", "name", "command"]).multiple(true).required(true))]
pub(crate) struct Start {
    /// Name or id of a stopped instance
    #[arg(value_name = "INSTANCE", conflicts_with_all = OPTIONS)]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) options: InstanceOptions,
    /// Program and arguments; no shell. Without it, the stopped instance of that name is started
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("filter").args(["running", "stopped", "paused", "disabled"]))]
pub(crate) struct List {
    /// Only running instances
    #[arg(long)]
    pub(crate) running: bool,
    /// Only stopped instances
    #[arg(long)]
    pub(crate) stopped: bool,
    /// Only paused instances
    #[arg(long)]
    pub(crate) paused: bool,
    /// Only disabled instances
    #[arg(long)]
    pub(crate) disabled: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Environment variable of the command; may be repeated
    #[arg(long, value_name = "K=V", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Working directory in the guest
    #[arg(long, value_name = "DIR", value_parser = guest_dir)]
    pub(crate) workdir: Option<String>,
    /// Kill the command after this time, such as 90s or 5m
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) target: Target,
    /// Program and arguments; no shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Wait for more until the instance is deleted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the newest N entries
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u64>,
    /// Only entries after a time: 10m for the last ten minutes, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) since: Option<Timestamp>,
    /// Only entries of one exec
    #[arg(long, value_name = "ID")]
    pub(crate) exec_id: Option<String>,
    /// The console of the guest's kernel instead
    #[arg(long, conflicts_with_all = ["follow", "tail", "since", "exec_id"])]
    pub(crate) console: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images
    List(Format),
    /// Make an image of a tar file
    Import {
        /// Tar file, optionally compressed with gzip; - is standard input
        #[arg(value_name = "TAR")]
        tar: PathBuf,
        /// Name of the image
        #[arg(long, value_name = "IMAGE", value_parser = ImageName::parse)]
        name: ImageName,
    },
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it is not a number".to_owned())
}

fn memory(text: &str) -> Result<Mib, String> {
    Mib::new(number(text)?).map_err(|e| e.to_string())
}

fn cpus(text: &str) -> Result<Vcpus, String> {
    Vcpus::new(number(text)?).map_err(|e| e.to_string())
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        None => Err("use K=V; secrets are not available in this version".to_owned()),
        Some(("", _)) => Err("the name before `=` is empty".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
    }
}

fn guest_dir(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("it must start with `/`".to_owned()) }
}

fn timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".to_owned()),
        other => other.map_err(|e| e.to_string()),
    }
}

/// The daemon reads the same grammar, so the text is passed on once it is known to be right.
fn duration_text(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        return Timestamp::now().checked_sub(ago).map_err(|_| "it is too long ago".to_owned());
    }
    let example = "write a duration such as `10m` or a time such as `2026-01-31T12:00:00Z`";
    text.parse().map_err(|_| example.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn variables_split_at_the_first_equals_sign() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(variable("A="), Ok(("A".to_owned(), String::new())));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }
}
