//! Clients of a port.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use aegis_types::PublicPort;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::BenchError;

const DEADLINE: Duration = Duration::from_secs(300);

/// Connects, asks, and waits for the first byte and a clean end. Returns the time to the first byte.
pub(crate) async fn ask(port: PublicPort) -> Result<Duration, BenchError> {
    let asked = tokio::time::timeout(DEADLINE, try_ask(port)).await;
    asked
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|e| BenchError::Failed(format!("port {port} did not answer: {e}")))
}

async fn try_ask(port: PublicPort) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).await?;
    stream.write_all(b"?").await?;
    stream.read_u8().await?;
    let took = start.elapsed();
    match stream.read(&mut [0]).await? {
        0 => Ok(took),
        _ => Err(io::Error::other("there was more than one byte")),
    }
}

/// What became of clients that came at once.
#[derive(Default)]
pub(crate) struct Race {
    pub(crate) answers: u64,
    pub(crate) failures: u64,
    /// One of them.
    pub(crate) failure: Option<String>,
    /// To the last answer.
    pub(crate) took: Duration,
}

/// So many clients at once.
pub(crate) async fn race(port: PublicPort, clients: u32) -> Result<Race, BenchError> {
    let start = Instant::now();
    let mut asking = JoinSet::new();
    for _ in 0..clients {
        asking.spawn(ask(port));
    }
    let mut race = Race::default();
    while let Some(asked) = asking.join_next().await {
        match asked {
            Ok(Ok(_)) => {
                race.answers += 1;
                race.took = start.elapsed();
            }
            Ok(Err(error)) => {
                race.failures += 1;
                race.failure = Some(error.to_string());
            }
            Err(error) => return Err(BenchError::Failed(format!("a client failed: {error}"))),
        }
    }
    Ok(race)
}
