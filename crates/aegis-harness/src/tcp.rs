//! Connections from the host to TCP ports of the guest: see [`aegis_proto::tcp`].
//!
//! A server often listens a moment after its machine runs, so a refusal is tried again here, where a try costs
//! microseconds. A flow that is cut on one side, because the guest was parked, the host vanished or the server gave up,
//! is reset on the other one; nobody is left to wait for a dead peer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use aegis_link::Carrier;
use aegis_link::tcp::{Reader, Writer, answer, receive};
use aegis_proto::tcp::{Answer, Connect};
use aegis_types::GuestPort;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

/// From the beginning of the stream to the request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// No host waits longer for somebody to listen.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// One try. It takes that long only when the server's queue is full.
const TRY_MAX: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// What is on its way in one direction.
const COPY_BYTES: usize = 16 * 1024;

/// Serves a stream from its request to the end of the connection.
pub(crate) async fn serve<S: Carrier>(mut stream: S) {
    let Connect { port, wait_ms } = match timeout(REQUEST_DEADLINE, receive(&mut stream)).await {
        Ok(Ok(connect)) => connect,
        Ok(Err(error)) => return debug!("a connection was not asked for properly: {error}"),
        Err(_) => return debug!("a stream for a connection asked for none"),
    };
    let (reader, mut writer) = split(stream);
    let mut reader = Reader::new(reader);
    let dialled = tokio::select! {
        dialled = dial(port, Duration::from_millis(wait_ms)) => dialled,
        () = reader.gone() => return debug!("nobody wants the connection to port {port} any more"),
    };
    match dialled {
        Ok(mut socket) => {
            let spliced = match answer(&mut writer, Answer::Connected).await {
                Ok(()) => splice(reader, Writer::new(writer), &mut socket).await,
                Err(error) => Err(io::Error::other(error)),
            };
            if let Err(error) = spliced {
                debug!("a connection to port {port} broke: {error}");
                // The server must not take the cut for an end. Without effect on a socket that is broken already.
                let _ = socket.set_zero_linger();
            }
        }
        Err(error) => {
            let message = format!("nobody listens on port {port} in the guest: {error}");
            // Whoever went away does not want to know.
            let _ = answer(&mut writer, Answer::Refused { message }).await;
            let _ = writer.shutdown().await;
        }
    }
}

/// Connects, trying again until the time is up; at least one try is made.
async fn dial(port: GuestPort, wait: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + wait.min(WAIT_MAX);
    let mut pause = PAUSE_MIN;
    loop {
        let error = match timeout(TRY_MAX, dial_once(port)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the server accepts no connection"),
        };
        if Instant::now() + pause > deadline {
            return Err(error);
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn dial_once(port: GuestPort) -> io::Result<TcpStream> {
    match connect(Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(socket) => Ok(socket),
        // That of IPv4 is reported: a guest may have no IPv6 at all.
        Err(error) => connect(Ipv6Addr::LOCALHOST.into(), port).await.map_err(|_| error),
    }
}

async fn connect(address: IpAddr, port: GuestPort) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(SocketAddr::new(address, port.get())).await?;
    // With nobody there, a port among those the kernel gives to clients can be connected to itself.
    if socket.local_addr()? == socket.peer_addr()? {
        let _ = socket.set_zero_linger();
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Copies both ways until both have finished.
async fn splice<R, W>(mut reader: Reader<R>, mut writer: Writer<W>, socket: &mut TcpStream) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut from_server, mut to_server) = socket.split();
    let mut inbound = pin!(async move {
        copy(&mut reader, &mut to_server).await?;
        Ok::<_, io::Error>(reader)
    });
    let mut outbound = pin!(copy(&mut from_server, &mut writer));
    tokio::select! {
        reader = &mut inbound => {
            let mut reader = reader?;
            tokio::select! {
                // The host may go as soon as it has both ends.
                biased;
                sent = &mut outbound => sent,
                () = reader.gone() => Err(io::Error::new(io::ErrorKind::ConnectionReset, "the host went away")),
            }
        }
        sent = &mut outbound => {
            sent?;
            inbound.await.map(drop)
        }
    }
}

/// Copies to the end, and passes the end on.
async fn copy(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = reader.read(&mut buffer).await?;
        if count == 0 {
            return writer.shutdown().await;
        }
        writer.write_all(&buffer[..count]).await?;
        writer.flush().await?;
    }
}
