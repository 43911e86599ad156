//! `aegis up` and `aegis down`.

use super::{Context, version_line};
use crate::daemon::{self, Running, Start};
use crate::error::CliError;
use crate::ui;

pub(crate) async fn up(context: &Context) -> Result<(), CliError> {
    ui::print(&version_line())?;
    ui::print(match daemon::start(&context.home, &context.client).await? {
        Start::AlreadyRunning => "aegisd: already running\n",
        Start::Started => "aegisd: started\n",
    })
}

pub(crate) async fn down(context: &Context) -> Result<(), CliError> {
    let pid = match daemon::find(&context.home, &context.client).await? {
        Running::Yes(pid) => pid,
        Running::No => return ui::print("aegisd is not running\n"),
        Running::Stale => return ui::print("aegisd is not running (stale pid file)\n"),
        Running::Invalid => return ui::print("aegisd is not running (invalid pid file)\n"),
    };
    daemon::terminate(pid)?;
    ui::print(&format!("aegisd stopping (pid {pid})\n"))?;
    daemon::wait_until_gone(&context.home, pid).await?;
    ui::print("aegisd stopped\n")
}
