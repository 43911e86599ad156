//! The command line of what joins a process: `aegis exec`, `aegis shell` and `aegis attach`.

use std::time::Duration;

use clap::Args;

use super::values::{guest_dir, timeout, user, variable};
use super::{DETACH_KEYS, Target};
use crate::detach_keys::DetachKeys;

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Streams {
    /// Open the standard input of the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) streams: Streams,
    /// User and group of the command in the guest, names or numbers [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = user)]
    pub(crate) user: Option<String>,
    /// Environment variable of the command; may be repeated
    #[arg(short, long, value_name = "K=V", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Working directory in the guest
    #[arg(short, long, value_name = "DIR", value_parser = guest_dir)]
    pub(crate) workdir: Option<String>,
    /// Kill the command after this time, such as 90s or 5m
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
    /// Keys that leave the command of `-it`, which goes on: characters and ctrl-CHARACTER; '' for none
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = str::parse::<DetachKeys>)]
    pub(crate) detach_keys: DetachKeys,
    #[command(flatten)]
    pub(crate) target: Target,
    /// Program and arguments; no shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// User and group of the shell in the guest, names or numbers [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = user)]
    pub(crate) user: Option<String>,
    /// Environment variable of the shell; may be repeated
    #[arg(short, long, value_name = "K=V", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Working directory in the guest
    #[arg(short, long, value_name = "DIR", value_parser = guest_dir)]
    pub(crate) workdir: Option<String>,
    /// Keys that leave the shell, which goes on: characters and ctrl-CHARACTER; '' for none
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = str::parse::<DetachKeys>)]
    pub(crate) detach_keys: DetachKeys,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Only show output; Ctrl-C leaves the command, which goes on
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Keys that leave a command with a terminal, which goes on: characters and ctrl-CHARACTER; '' for none
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = str::parse::<DetachKeys>)]
    pub(crate) detach_keys: DetachKeys,
    #[command(flatten)]
    pub(crate) target: Target,
}
