//! Ports of instances on this machine.

use aegis_api::{Endpoint, ExposeRequest};
use aegis_types::{Expose, GuestPort, Protocol, PublicPort};

use super::Context;
use crate::error::CliError;
use crate::suggest::explain;
use crate::ui;

pub(super) async fn expose(context: &Context, target: &str, port: Expose) -> Result<(), CliError> {
    match context.client.expose(target, &ExposeRequest::from(port)).await {
        Ok(port) => ui::print(&exposed(port.protocol, port.public_port, port.guest_port)),
        Err(error) => Err(explain(&context.client, target, error).await),
    }
}

pub(super) async fn unexpose(context: &Context, target: &str, port: GuestPort) -> Result<(), CliError> {
    match context.client.unexpose(target, port).await {
        Ok(_) => ui::print(&format!("Unexposed port {port} on {target}\n")),
        Err(error) => Err(explain(&context.client, target, error).await),
    }
}

/// The line that says where a port is.
pub(crate) fn exposed(protocol: Protocol, public: PublicPort, guest: GuestPort) -> String {
    format!("Exposed: {}\n", arrow(protocol, public, guest))
}

pub(super) fn arrow(protocol: Protocol, public: PublicPort, guest: GuestPort) -> String {
    format!("{protocol}://127.0.0.1:{public} → vm:{guest}")
}

pub(super) fn url(endpoint: &Endpoint) -> String {
    format!("{}://127.0.0.1:{}", endpoint.protocol, endpoint.public_port)
}

/// Says which ports nobody listens on, and that there are none although some were asked for: a daemon of old ignores
/// what it does not know.
pub(crate) fn warn_of_problems(asked: &[ExposeRequest], endpoints: &[Endpoint]) {
    if !asked.is_empty() && endpoints.is_empty() {
        ui::warn(
            "no port is exposed: aegisd is older than this program; `aegis down`, then `aegis up`, renews it",
        );
    }
    for endpoint in endpoints {
        if let Some(problem) = &endpoint.problem {
            ui::warn(&format!("port {} does not work: {problem}", endpoint.public_port));
        }
    }
}
