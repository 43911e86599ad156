//! `aegis status`.

use aegis_api::DaemonStatus;
use aegis_client::ClientError;
use serde::Serialize;

use super::{Context, version_line};
use crate::error::CliError;
use crate::ui;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<DaemonStatus>,
}

pub(crate) async fn run(context: &Context, json: bool) -> Result<(), CliError> {
    let daemon = match context.client.status().await {
        Ok(status) => Some(status),
        Err(ClientError::NotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if json {
        let version = env!("CARGO_PKG_VERSION");
        return ui::print_json(&Report { version, running: daemon.is_some(), daemon });
    }
    let mut text = version_line();
    match daemon {
        None => text.push_str("aegisd: not running\n"),
        Some(daemon) => {
            text.push_str(&format!("aegisd: running\nbackend: {}\n", daemon.backend));
            let router = daemon.router.and_then(|router| match (router.address, router.problem) {
                (Some(address), _) => Some(format!("http://{address}")),
                (None, problem) => problem.map(|problem| format!("off ({problem})")),
            });
            text.extend(router.map(|router| format!("router: {router}\n")));
        }
    }
    ui::print(&text)
}
