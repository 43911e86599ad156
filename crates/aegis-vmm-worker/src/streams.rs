//! The stream socket: `CONNECT <service number>\n`, then the bytes of that guest service in both directions. Those that
//! arrive with the request go to the guest with it; nobody else's wait for `OK`.

use std::time::Duration;

use aegis_link::Stream;
use aegis_proto::service::Service;
use aegis_proto::worker::Phase;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional_with_sizes,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::boot::message_of;
use crate::view::View;

/// Below the multiplexer's own limit, so that the worker's control stream always finds room.
const STREAMS_MAX: usize = 120;
/// From the connection to `OK` or `ERR`.
const PREFACE_DEADLINE: Duration = Duration::from_secs(10);
const PREFACE_MAX: u64 = 32;
/// One frame of the multiplexer.
const COPY_BYTES: usize = 16 * 1024;
/// When no connection can be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts stream clients.
pub(crate) struct Server {
    listener: UnixListener,
    view: watch::Receiver<View>,
    clients: JoinSet<()>,
}

impl Server {
    pub(crate) fn new(listener: UnixListener, view: watch::Receiver<View>) -> Self {
        Self { listener, view, clients: JoinSet::new() }
    }

    /// Serves clients; never returns. May be dropped at any time: clients are served on.
    pub(crate) async fn accept(&mut self) {
        loop {
            let stream = accept(&self.listener, &mut self.clients).await;
            let admitted = self.clients.len() < STREAMS_MAX;
            // A refusal is written by a task as well: its client may not be reading.
            self.clients.spawn(serve(stream, self.view.clone(), admitted));
        }
    }

    /// Waits until what came from the guest was delivered and the clients have left.
    pub(crate) async fn drain(mut self) {
        while self.clients.join_next().await.is_some() {}
    }
}

/// The next connection. Tasks that are done are taken out of the set meanwhile.
pub(crate) async fn accept(listener: &UnixListener, tasks: &mut JoinSet<()>) -> UnixStream {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => return stream,
                Err(e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn serve(client: UnixStream, view: watch::Receiver<View>, admitted: bool) {
    let mut client = BufReader::new(client);
    let opened = async {
        let opened =
            if admitted { open(&mut client, &view).await } else { Err("too many streams".to_owned()) };
        let answer = match &opened {
            Ok(_) => "OK\n".to_owned(),
            Err(why) => format!("ERR {why}\n"),
        };
        client.write_all(answer.as_bytes()).await.ok().and(opened.ok())
    };
    let Ok(Some(mut guest)) = timeout(PREFACE_DEADLINE, opened).await else { return };
    // Either side may vanish at any time; the other one then sees the end of its stream.
    if let Err(e) = copy_bidirectional_with_sizes(&mut client, &mut guest, COPY_BYTES, COPY_BYTES).await {
        tracing::debug!("a stream broke: {e}");
    }
}

/// Reads the preface and opens the guest service. The error goes to the client.
async fn open(client: &mut BufReader<UnixStream>, view: &watch::Receiver<View>) -> Result<Stream, String> {
    let mut line = Vec::new();
    // Bytes after the newline stay in the buffer: they belong to the service.
    let read = (&mut *client).take(PREFACE_MAX).read_until(b'\n', &mut line).await;
    read.map_err(|e| e.to_string())?;
    let number = parse(&line).ok_or("expected `CONNECT <service number>`")?;
    let service = Service::from_number(number).ok_or_else(|| format!("unknown service {number}"))?;
    let link = {
        let view = view.borrow();
        match view.phase {
            Phase::Running => view.link.clone().ok_or("the guest link is being restored")?,
            Phase::Booting => return Err("booting".to_owned()),
            Phase::Paused => return Err("paused".to_owned()),
            Phase::Hibernating => return Err("hibernating".to_owned()),
            Phase::Stopping => return Err("stopping".to_owned()),
        }
    };
    let opened = link.open_with(service, client.buffer()).await;
    client.consume(client.buffer().len());
    opened.map_err(|e| message_of(&e).replace('\n', " "))
}

fn parse(line: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(line).ok()?;
    text.strip_prefix("CONNECT ")?.strip_suffix('\n')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefaces_are_strict() {
        assert_eq!(parse(b"CONNECT 2\n"), Some(2));
        for bad in [
            "",
            "\n",
            "CONNECT\n",
            "CONNECT 2",
            "CONNECT 2 \n",
            "connect 2\n",
            "CONNECT 65536\n",
            "CONNECT -1\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
