//! Times of what a user does.

use std::time::{Duration, Instant};

use aegis_client::{Action, Client};
use tokio::process::Command;

use crate::BenchError;

/// An action, from the request to its answer.
pub(crate) async fn action(client: &Client, id: &str, action: Action) -> Result<Duration, BenchError> {
    let start = Instant::now();
    client.action(id, action).await?;
    Ok(start.elapsed())
}

/// A program, from its start to its end.
pub(crate) async fn command(command: &mut Command) -> Result<Duration, BenchError> {
    let start = Instant::now();
    let status = command.status().await.map_err(BenchError::io("run aegis"))?;
    if status.success() {
        Ok(start.elapsed())
    } else {
        Err(BenchError::Failed(format!("aegis failed: {status}")))
    }
}
