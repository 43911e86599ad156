//! The command line. Doc comments here are the help texts.

mod image;
mod instance;
mod process;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use aegis_types::{DiskSize, IdlePolicy, ImageName, Mib, NetRule, SecretFile, SecretName, SecretUse, Vcpus};
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};
use jiff::Timestamp;

pub(crate) use self::image::{ImageCommand, RegistryCommand};
pub(crate) use self::instance::{
    Goal, InstanceCommand, InstanceOptions, Keepalive, List, Start, Target, Wait,
};
pub(crate) use self::process::{Attach, Exec, Shell, Streams};
pub(crate) use self::values::Variable;
use self::values::{cpus, disk, duration_text, idle_policy, memory, since, time, timeout, variable};
use crate::detach_keys::DetachKeys;

/// As Docker has them.
const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

const EXIT_CODES: &str = "\
Exit codes:
  0      success; of `run`, `exec`, `shell` and `attach`: the exit code of the guest's command
  1      error
  2      the command line makes no sense
  124    `--timeout` or `--max-lifetime` passed
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
    /// Stop the daemon; running instances are hibernated
    Down(Down),
    /// Show whether the daemon runs
    Status(Format),
    /// Have the daemon started by the service manager of this user
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Check the installation and say what to do about problems
    Doctor(Format),
    /// Run a command in a new VM, then delete the VM
    Run(Box<Run>),
    /// Manage instances
    Instance {
        #[command(subcommand)]
        command: InstanceCommand,
    },
    /// Run a command in an instance
    Exec(Exec),
    /// Open a shell in an instance
    Shell(Shell),
    /// Connect the terminal to the command of an instance
    Attach(Attach),
    /// Copy files between this machine and an instance
    #[command(override_usage = "aegis cp [OPTIONS] <PATH|-> <INSTANCE:PATH>\n       \
                                aegis cp [OPTIONS] <INSTANCE:PATH> <PATH|->")]
    Cp(Cp),
    /// Show everything about an instance or an image, as JSON
    Inspect {
        /// Name or id of an instance; an image of that name is shown when there is none
        #[arg(value_name = "NAME")]
        name: String,
        /// Print JSON, which is the only form
        #[arg(long)]
        json: bool,
    },
    /// Change memory, disk, CPUs, environment or idle settings of an instance
    Update(Update),
    /// Show what an instance has written
    Logs(Logs),
    /// Show and change what instances may reach in the network
    Net {
        #[command(subcommand)]
        command: NetCommand,
    },
    /// Manage images
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Manage access to registries of images
    Registry {
        #[command(subcommand)]
        command: RegistryCommand,
    },
    /// Manage templates: booted VMs of which new instances are copies
    Template {
        #[command(subcommand)]
        command: TemplateCommand,
    },
    /// Manage workspaces: directories that instances have at /workspace
    Workspace {
        #[command(subcommand)]
        command: WorkspaceCommand,
    },
    /// Manage secrets: values that commands get and nobody else sees
    Secret {
        #[command(subcommand)]
        command: SecretCommand,
    },
    /// Show what instances cost and how they started
    Stats {
        /// Name or id; all instances without it
        #[arg(value_name = "INSTANCE")]
        target: Option<String>,
        #[command(flatten)]
        format: Format,
    },
    /// Measure boots, starts, wakes and density beside a bare VMM
    #[command(disable_help_flag = true)]
    Bench {
        /// `boot`, `start`, `wake`, `net`, `fs` or `density`, and its options; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<std::ffi::OsString>,
    },
    /// Print a completion script for a shell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
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
pub(crate) struct Down {
    /// Stop running instances instead of hibernating them
    #[arg(long)]
    pub(crate) stop: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) options: InstanceOptions,
    /// End the run after this time, such as 90s or 5m
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
    /// Keys that leave the command of `-it`, which goes on: characters and ctrl-CHARACTER; '' for none
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = str::parse::<DetachKeys>)]
    pub(crate) detach_keys: DetachKeys,
    /// Program and arguments; no shell. Without it, with --image or --oci-defaults, the image says what to run
    #[arg(last = true, required_unless_present_any = ["image", "oci_defaults"], value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// Keep owners and groups; otherwise copies in an instance are root's, and copies here are yours
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Copy what SOURCE leads to if it is a symbolic link
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// What to copy: PATH, INSTANCE:PATH, or - for a tar stream on standard input; DIR/. is what is in a directory
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// Where to: into an existing directory, otherwise under that name; - for a tar stream on standard output
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: String,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").multiple(true).required(true).args([
    "memory", "disk", "cpus", "env", "unset_env", "pause_after", "never_pause", "hibernate_after", "no_hibernate",
    "idle_policy",
]))]
pub(crate) struct Update {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Memory in MiB, from the next start on
    #[arg(long, value_name = "MB", value_parser = memory)]
    pub(crate) memory: Option<Mib>,
    /// Size of its disk, such as 20G, or in MiB: not below what it has. It grows at the next boot
    #[arg(long, value_name = "SIZE", value_parser = disk)]
    pub(crate) disk: Option<DiskSize>,
    /// Virtual CPUs, from the next start on
    #[arg(long, visible_alias = "vcpus", value_name = "N", value_parser = cpus)]
    pub(crate) cpus: Option<Vcpus>,
    /// Environment variable of the command, from the next start on; may be repeated
    #[arg(long, value_name = "K=V", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Environment variable that goes; may be repeated
    #[arg(long, value_name = "K")]
    pub(crate) unset_env: Vec<String>,
    /// Pause it after so much idle time, from now on
    #[arg(long, value_name = "DURATION", value_parser = time)]
    pub(crate) pause_after: Option<Duration>,
    /// Never pause it for being idle, from now on
    #[arg(long, conflicts_with = "pause_after")]
    pub(crate) never_pause: bool,
    /// Hibernate it after so much paused time, from now on
    #[arg(long, value_name = "DURATION", value_parser = time)]
    pub(crate) hibernate_after: Option<Duration>,
    /// Never write its memory to disk, from now on
    #[arg(long, conflicts_with = "hibernate_after")]
    pub(crate) no_hibernate: bool,
    /// What keeps it awake beside connections, execs and leases: default (its own work) or leases-only (nothing)
    #[arg(long, value_name = "POLICY", value_parser = idle_policy)]
    pub(crate) idle_policy: Option<IdlePolicy>,
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
pub(crate) enum ServiceCommand {
    /// Start the daemon now and at every login, and again if it fails; VMs live on meanwhile
    Install {
        /// Only print what would be installed
        #[arg(long)]
        print: bool,
    },
    /// Stop the daemon, which hibernates running instances, and start it no more
    Uninstall,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetCommand {
    /// Show what an instance may reach
    Show {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Show what an instance wanted to reach, and what was decided
    Log {
        #[command(flatten)]
        target: Target,
        /// Only what was denied
        #[arg(long)]
        denied: bool,
        /// Wait for more, until the instance is deleted
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Allow something, now and after every start
    Allow {
        /// Name or id
        #[arg(value_name = "INSTANCE")]
        target: String,
        /// NAME, *.NAME, ADDRESS or NETWORK with an optional :PORT
        #[arg(required = true, value_name = "RULE", value_parser = str::parse::<NetRule>)]
        rules: Vec<NetRule>,
    },
    /// Deny something, now and after every start; it wins over what is allowed
    Deny {
        /// Name or id
        #[arg(value_name = "INSTANCE")]
        target: String,
        /// NAME, *.NAME, ADDRESS or NETWORK with an optional :PORT
        #[arg(required = true, value_name = "RULE", value_parser = str::parse::<NetRule>)]
        rules: Vec<NetRule>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkspaceCommand {
    /// List workspaces
    List(Format),
    /// Show what workspaces take up on the disk
    Du {
        /// Names; all workspaces without one
        #[arg(value_name = "WORKSPACE")]
        names: Vec<String>,
        #[command(flatten)]
        format: Format,
    },
    /// Delete workspaces with everything in them
    Delete {
        /// Names
        #[arg(required = true, value_name = "WORKSPACE")]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Store a secret, in place of an older one; instances get it at their next boot
    Set {
        /// Name: letters, digits, `_`, `.` and `-`
        #[arg(value_name = "KEY", value_parser = SecretName::parse)]
        name: SecretName,
        #[command(flatten)]
        source: SecretSource,
    },
    /// List the names of secrets
    List(Format),
    /// Delete secrets; commands that run keep what they have
    Delete {
        /// Names
        #[arg(required = true, value_name = "KEY", value_parser = SecretName::parse)]
        names: Vec<SecretName>,
    },
    /// Show the value of a secret
    Get {
        /// Name
        #[arg(value_name = "KEY", value_parser = SecretName::parse)]
        name: SecretName,
        /// Yes, print it
        #[arg(long, required = true)]
        reveal: bool,
    },
    /// Say which secrets an instance gets from its next boot on, in place of all that it gets now
    Assign {
        #[command(flatten)]
        target: Target,
        /// Secret that its command has as a variable: KEY, K=secret.NAME, or '*' for all
        #[arg(value_name = "KEY", value_parser = str::parse::<SecretUse>, required_unless_present_any = ["secret_file", "none"])]
        secrets: Vec<SecretUse>,
        /// Secret that it has as a file in memory, as KEY:/run/secrets/NAME; may be repeated
        #[arg(long, value_name = "KEY:FILE", value_parser = str::parse::<SecretFile>)]
        secret_file: Vec<SecretFile>,
        /// It gets none any more
        #[arg(long, conflicts_with_all = ["secrets", "secret_file"])]
        none: bool,
    },
    /// Encrypt all secrets with a new master key
    RotateKey,
    /// Show which instance was given which secret when, and what else was done
    Audit {
        /// Only what this instance was given, by name or id
        #[arg(value_name = "INSTANCE")]
        instance: Option<String>,
        #[command(flatten)]
        format: Format,
    },
}

/// Without any of them the value is read from the terminal, unseen, or from a pipe.
#[derive(Args)]
pub(crate) struct SecretSource {
    /// The value; - reads it from standard input; without it the terminal asks
    #[arg(value_name = "VALUE")]
    pub(crate) value: Option<String>,
    /// File that has the value, which may be any bytes
    #[arg(long, visible_alias = "from-file", value_name = "FILE", conflicts_with = "value")]
    pub(crate) file: Option<PathBuf>,
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// List templates
    List(Format),
    /// Delete templates; they are made again when they are needed
    Prune {
        /// Only those from which nothing was started for this time, such as 14d
        #[arg(long, value_name = "DURATION", value_parser = duration_text)]
        older_than: Option<String>,
    },
    /// Make a template now, so that the first start of an image is fast as well
    Build {
        /// Image
        #[arg(long, value_name = "IMAGE", value_parser = ImageName::parse)]
        image: Option<ImageName>,
        /// Memory in MiB
        #[arg(long, value_name = "MB", value_parser = memory)]
        memory: Option<Mib>,
        /// Virtual CPUs
        #[arg(long, visible_alias = "vcpus", value_name = "N", value_parser = cpus)]
        cpus: Option<Vcpus>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
