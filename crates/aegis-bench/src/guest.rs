//! Measurements inside a running guest.

use std::time::{Duration, Instant};

use aegis_api::ExecRequest;
use aegis_client::{Client, ExecEvent};

use crate::BenchError;

/// Rounds of fork and exec in the guest: enough for its clock, little enough for an emulated machine.
const SPAWNS: u32 = 100;

/// Runs a command and returns its standard output and the time from the request to its end.
pub(crate) async fn exec(
    client: &Client,
    target: &str,
    command: &[&str],
) -> Result<(Duration, Vec<u8>), BenchError> {
    let request =
        ExecRequest { command: command.iter().map(|&s| s.to_owned()).collect(), ..Default::default() };
    let start = Instant::now();
    let mut events = client.exec(target, &request).await?;
    let mut output = Vec::new();
    while let Some(event) = events.next().await? {
        match event {
            ExecEvent::Started(_) => {}
            ExecEvent::Entry(entry) => output.extend_from_slice(&entry.bytes()),
            ExecEvent::Done(done) if done.exit_code == 0 => return Ok((start.elapsed(), output)),
            ExecEvent::Done(done) => {
                return Err(BenchError::Failed(format!(
                    "`{}` failed with code {}",
                    command.join(" "),
                    done.exit_code
                )));
            }
        }
    }
    Err(BenchError::Failed("the exec was cut off".to_owned()))
}

/// What fork, exec and wait of `true` cost the guest itself: the floor of an exec.
pub(crate) async fn spawn_cost(client: &Client, target: &str) -> Result<Duration, BenchError> {
    let script = format!(
        "t=$(date +%s%N); i=0; while [ $i -lt {SPAWNS} ]; do /bin/true; i=$((i+1)); done; echo $(($(date +%s%N)-t))"
    );
    let (_, output) = exec(client, target, &["sh", "-c", &script]).await?;
    let text = String::from_utf8_lossy(&output);
    let total: u64 = text
        .trim()
        .parse()
        .map_err(|_| BenchError::Failed(format!("unexpected output `{}`", text.trim())))?;
    Ok(Duration::from_nanos(total) / SPAWNS)
}
