//! The command line of `aegis instance`, and what describes instances elsewhere.

use std::time::Duration;

use aegis_types::{
    DiskSize, Expose, GuestPort, Handle, IdlePolicy, ImageName, Mib, Mount, PullPolicy, RestartPolicy,
    SecretFile, SecretUse, Vcpus,
};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::values::{
    Variable, Workspace, cpus, disk, duration_text, guest_dir, idle_policy, memory, mount, net, time,
    timeout, user, variable, variable_or_secret, workspace,
};
use super::{Format, Streams};

#[derive(Debug, Args)]
pub(crate) struct InstanceOptions {
    /// Name of the instance, unique; also its host name
    #[arg(long, value_name = "NAME", value_parser = Handle::parse)]
    pub(crate) name: Option<Handle>,
    /// Image: one that is there, or the name of one at a registry, such as python:3.12-alpine or ghcr.io/team/tools:v1
    /// [default: setting default_image]
    #[arg(long, value_name = "IMAGE", value_parser = ImageName::parse)]
    pub(crate) image: Option<ImageName>,
    /// Whether its registry is asked first: missing, always or never [default: setting images.pull]
    #[arg(long, value_name = "POLICY", value_parser = str::parse::<PullPolicy>)]
    pub(crate) pull: Option<PullPolicy>,
    /// Use ENTRYPOINT, CMD, WORKDIR and USER of the image where nothing else is said; COMMAND is what follows the ENTRYPOINT
    #[arg(long)]
    pub(crate) oci_defaults: bool,
    /// Memory in MiB
    #[arg(long, value_name = "MB", value_parser = memory)]
    pub(crate) memory: Option<Mib>,
    /// Size of its disk, such as 10G, or in MiB: more cannot be written in its guest, the workspace aside. Space of this
    /// machine is taken when it is used [default: the daemon's, 10G]
    #[arg(long, value_name = "SIZE", value_parser = disk)]
    pub(crate) disk: Option<DiskSize>,
    /// Virtual CPUs
    #[arg(long, visible_alias = "vcpus", value_name = "N", value_parser = cpus)]
    pub(crate) cpus: Option<Vcpus>,
    /// Environment variable of the command: K=V, K=secret.NAME, KEY for the secret of that name if it is stored, or '*' for
    /// all secrets; may be repeated
    #[arg(short, long, value_name = "VARIABLE", value_parser = variable_or_secret)]
    pub(crate) env: Vec<Variable>,
    /// The same, whatever the value looks like; may be repeated
    #[arg(long, value_name = "K=V", value_parser = variable)]
    pub(crate) env_literal: Vec<(String, String)>,
    /// Secret that the command has as a variable: KEY, K=secret.NAME, or '*' for all; it must be stored; may be repeated
    #[arg(long, value_name = "KEY", value_parser = str::parse::<SecretUse>)]
    pub(crate) secret: Vec<SecretUse>,
    /// Secret that the guest has as a file in memory, as KEY:/run/secrets/NAME; may be repeated
    #[arg(long, value_name = "KEY:FILE", value_parser = str::parse::<SecretFile>)]
    pub(crate) secret_file: Vec<SecretFile>,
    #[command(flatten)]
    pub(crate) streams: Streams,
    /// User and group of the command in the guest, names or numbers [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = user)]
    pub(crate) user: Option<String>,
    /// Working directory in the guest
    #[arg(short, long, value_name = "DIR", value_parser = guest_dir)]
    pub(crate) workdir: Option<String>,
    /// What it has at /workspace: the name of a workspace, or a directory of this machine (a path with a `/`, or one that
    /// begins with `.`); `:ro` at the end keeps it from changing it [default: a workspace of its own]
    #[arg(long, value_name = "WORKSPACE[:ro]", value_parser = workspace)]
    pub(crate) workspace: Option<Workspace>,
    /// Directory of this machine that it has somewhere else, as HOST:GUEST[:ro]; may be repeated
    #[arg(long, value_name = "HOST:GUEST[:ro]", value_parser = mount)]
    pub(crate) mount: Vec<Mount>,
    /// Port to reach from the host: [PUBLIC:]GUEST[/http|tcp|grpc]; may be repeated
    #[arg(long, value_name = "PORT", value_parser = str::parse::<Expose>)]
    pub(crate) expose: Vec<Expose>,
    /// What it may reach: public, none, allow:RULE,... or deny:RULE,...; a rule is NAME, *.NAME, ADDRESS or NETWORK with
    /// an optional :PORT; may be repeated [default: public]
    #[arg(long, value_name = "POLICY", value_parser = net)]
    pub(crate) net: Vec<String>,
    /// Port of this machine's loopback interface that it reaches at host.aegis.internal; may be repeated
    #[arg(long, value_name = "PORT", value_parser = str::parse::<GuestPort>)]
    pub(crate) host_port: Vec<GuestPort>,
    /// Pause it after so much idle time [default: setting pause_after]
    #[arg(long, value_name = "DURATION", value_parser = time)]
    pub(crate) pause_after: Option<Duration>,
    /// Hibernate it after so much paused time [default: setting hibernate_after]
    #[arg(long, value_name = "DURATION", value_parser = time)]
    pub(crate) hibernate_after: Option<Duration>,
    /// Never pause it for being idle
    #[arg(long, conflicts_with = "pause_after")]
    pub(crate) never_pause: bool,
    /// Never write its memory to disk
    #[arg(long, conflicts_with = "hibernate_after")]
    pub(crate) no_hibernate: bool,
    /// Stop it so long after its start, whatever it does
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) max_lifetime: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InstanceCommand {
    /// Start a new instance, or one that was stopped
    #[command(override_usage = "aegis instance start [OPTIONS] -- <COMMAND>...\n       \
                                aegis instance start <INSTANCE>")]
    Start(Box<Start>),
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
    /// Save the memory of an instance and end its VM; it goes on from there when it is woken
    Hibernate(Target),
    /// Wait until an instance is in a state, or listens on a port
    Wait(Wait),
    /// Make a port of an instance reachable from the host
    Expose {
        #[command(flatten)]
        target: Target,
        /// [PUBLIC:]GUEST[/http|tcp|grpc]; without PUBLIC any free port is taken
        #[arg(value_name = "PORT", value_parser = str::parse::<Expose>)]
        port: Expose,
    },
    /// Undo `expose`
    Unexpose {
        #[command(flatten)]
        target: Target,
        /// Port in the guest
        #[arg(value_name = "GUEST")]
        port: GuestPort,
    },
    /// Keep an instance awake for a time, whether it is idle or not
    Keepalive(Keepalive),
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
const OPTIONS: [&str; 24] = [
    "command",
    "name",
    "image",
    "pull",
    "oci_defaults",
    "memory",
    "disk",
    "cpus",
    "env",
    "env_literal",
    "secret",
    "secret_file",
    "interactive",
    "tty",
    "user",
    "workdir",
    "expose",
    "pause_after",
    "hibernate_after",
    "never_pause",
    "no_hibernate",
    "max_lifetime",
    "restart",
    "idle_policy",
];

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["target", "name", "command", "image", "oci_defaults"]).multiple(true).required(true))]
pub(crate) struct Start {
    /// Name or id of a stopped instance
    #[arg(value_name = "INSTANCE", conflicts_with_all = OPTIONS)]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) options: InstanceOptions,
    /// Start it again when its command ends: no, on-failure or always [default: no]
    #[arg(long, value_name = "POLICY", value_parser = str::parse::<RestartPolicy>)]
    pub(crate) restart: Option<RestartPolicy>,
    /// What keeps it awake beside connections, execs and leases: default (its own work) or leases-only (nothing)
    #[arg(long, value_name = "POLICY", value_parser = idle_policy)]
    pub(crate) idle_policy: Option<IdlePolicy>,
    /// Program and arguments; no shell. Without it, the stopped instance of that name is started; or, with --image or
    /// --oci-defaults, the image says what to run
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("filter").args(["running", "stopped", "paused", "hibernated", "disabled"]))]
pub(crate) struct List {
    /// Only running instances
    #[arg(long)]
    pub(crate) running: bool,
    /// Only instances without a VM, hibernated ones among them
    #[arg(long)]
    pub(crate) stopped: bool,
    /// Only paused instances
    #[arg(long)]
    pub(crate) paused: bool,
    /// Only hibernated instances
    #[arg(long)]
    pub(crate) hibernated: bool,
    /// Only disabled instances
    #[arg(long)]
    pub(crate) disabled: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    pub(crate) target: Target,
    /// What to wait for
    #[arg(long = "for", value_name = "WHAT", value_enum)]
    pub(crate) goal: Goal,
    /// The guest's port, with `--for port` [default: its first exposed one]
    #[arg(long, value_name = "GUEST")]
    pub(crate) port: Option<GuestPort>,
    /// Give up after this time, such as 90s or 5m, with exit code 124
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Goal {
    Running,
    Stopped,
    Paused,
    Hibernated,
    Port,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["ttl", "release"]).required(true))]
pub(crate) struct Keepalive {
    #[command(flatten)]
    pub(crate) target: Target,
    /// How long, such as 90s or 5m; a new request replaces an older one
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) ttl: Option<Duration>,
    /// What for; `aegis instance info` shows it
    #[arg(long, value_name = "TEXT", conflicts_with = "release")]
    pub(crate) reason: Option<String>,
    /// Let it be idle again
    #[arg(long)]
    pub(crate) release: bool,
}
