//! `aegis instance wait`.

use std::time::Duration;

use aegis_api::{WaitFor, WaitQuery};
use tokio::time::timeout;

use super::Context;
use crate::args::{Goal, Wait};
use crate::error::{CliError, Kind};
use crate::suggest::explain;
use crate::ui;

/// The daemon ends the wait itself, with a better message; this long after it should have, we do.
const GRACE: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Context, args: Wait) -> Result<(), CliError> {
    let target = args.target.target.as_str();
    let goal = match args.goal {
        Goal::Running => WaitFor::Running,
        Goal::Stopped => WaitFor::Stopped,
        Goal::Paused => WaitFor::Paused,
        Goal::Hibernated => WaitFor::Hibernated,
        Goal::Port => WaitFor::Port,
    };
    if args.port.is_some() && goal != WaitFor::Port {
        return Err(CliError::new(Kind::Usage, "`--port` makes no sense without `--for port`"));
    }
    let query = WaitQuery { goal, port: args.port, timeout_ms: args.timeout.map(ui::milliseconds) };
    let answer = context.client.wait(target, &query);
    let answer = match args.timeout {
        None => answer.await,
        Some(limit) => timeout(limit + GRACE, answer).await.map_err(|_| {
            let limit = ui::in_words(limit);
            CliError::new(Kind::Timeout, format!("aegisd did not end the wait within {limit}"))
        })?,
    };
    match answer {
        Ok(reply) => {
            let what = match (goal, args.port) {
                (WaitFor::Port, Some(port)) => format!("listens on port {port}"),
                (WaitFor::Port, None) => "listens on its port".to_owned(),
                _ => format!("is {}", reply.status),
            };
            ui::print(&format!("Instance {target} {what}\n"))
        }
        Err(error) => Err(explain(&context.client, target, error).await),
    }
}
