//! Instances of a measurement.

use aegis_api::{CreateInstance, ExposeRequest, WaitFor, WaitQuery};
use aegis_client::{Client, Creation};
use aegis_types::{GuestPort, Protocol, PublicPort, StartKind};

use crate::BenchError;

/// Port on which [`responder`] listens.
const PORT: u16 = 7000;

/// Longer than any start takes, in milliseconds.
const DEADLINE_MS: u64 = 120_000;

/// One answer for each connection, by one process that is always there: what is measured is the way to it. It can hold
/// as many connections as arrive at once.
const RESPONDER: &str = "import socket
server = socket.create_server(('127.0.0.1', 7000), backlog=1024)
while True:
    connection, _ = server.accept()
    connection.recv(1)
    connection.sendall(b'x')
    connection.close()
";

/// An instance that sleeps.
pub(crate) fn sleeper(name: &str) -> Result<CreateInstance, BenchError> {
    request(name, &["sleep", "1000000"])
}

/// An instance that answers connections to a port. Only requests make it rest, not idleness.
pub(crate) fn responder(name: &str) -> Result<CreateInstance, BenchError> {
    let port = GuestPort::new(PORT).map_err(|e| BenchError::Failed(e.to_string()))?;
    let expose = ExposeRequest { port, public_port: None, protocol: Protocol::Tcp };
    let request = request(name, &["python3", "-I", "-S", "-c", RESPONDER])?;
    Ok(CreateInstance { exposes: vec![expose], never_pause: true, ..request })
}

fn request(name: &str, command: &[&str]) -> Result<CreateInstance, BenchError> {
    let handle = name.parse().map_err(|e| BenchError::Failed(format!("{e}")))?;
    let command = command.iter().map(|&word| word.to_owned()).collect();
    Ok(CreateInstance { command, handle: Some(handle), ..Default::default() })
}

/// Creates an instance and waits until it runs.
pub(crate) async fn create(client: &Client, request: &CreateInstance) -> Result<String, BenchError> {
    let created = match client.create(request).await? {
        Creation::Created(created) | Creation::Restarted(created) => created,
    };
    let id = created.id.to_string();
    let running = WaitQuery { goal: WaitFor::Running, port: None, timeout_ms: Some(DEADLINE_MS) };
    if let Err(error) = client.wait(&id, &running).await {
        let why = client.get(&id).await?.last_error.unwrap_or_else(|| error.to_string());
        return Err(BenchError::Failed(format!("the instance did not start: {why}")));
    }
    Ok(id)
}

/// Fails unless the VM of an instance was started from this. Otherwise something else was measured.
pub(crate) async fn expect_start(client: &Client, id: &str, kind: StartKind) -> Result<u64, BenchError> {
    let info = client.get(id).await?;
    match (info.start_kind, info.boot_ms) {
        (Some(found), Some(ms)) if found == kind => Ok(ms),
        (found, _) => Err(BenchError::Failed(format!(
            "the start of {id} was expected to be `{kind}` and was `{}`: its log may say why",
            found.map_or("none", StartKind::as_str)
        ))),
    }
}

/// The port of an instance on the host.
pub(crate) async fn public_port(client: &Client, id: &str) -> Result<PublicPort, BenchError> {
    let info = client.get(id).await?;
    let endpoint = info.endpoints.first();
    endpoint
        .map(|endpoint| endpoint.public_port)
        .ok_or_else(|| BenchError::Failed(format!("{id} has no port on the host")))
}
