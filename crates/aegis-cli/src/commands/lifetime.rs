//! `aegis up` and `aegis down`.

use aegis_api::ShutdownMode;

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

pub(crate) async fn down(context: &Context, stop: bool) -> Result<(), CliError> {
    let (pid, live_vms) = match daemon::find(&context.home, &context.client).await? {
        Running::Yes { pid, live_vms } => (pid, live_vms),
        Running::No => return ui::print("aegisd is not running\n"),
        Running::Stale => return ui::print("aegisd is not running (stale pid file)\n"),
        Running::Invalid => return ui::print("aegisd is not running (invalid pid file)\n"),
    };
    if stop {
        // Not followed by a signal: a daemon that ends already takes that for impatience.
        context.client.shutdown(ShutdownMode::Stop).await?;
    } else {
        daemon::terminate(pid)?;
    }
    ui::print(&format!("aegisd stopping (pid {pid})\n"))?;
    daemon::wait_until_gone(&context.home, pid, live_vms).await?;
    ui::print("aegisd stopped\n")
}
