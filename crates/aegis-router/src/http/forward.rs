//! One request: from its head to the end of the answer, or of what it was upgraded to.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::choice::{Choice, choose, no_only, unknown};
use super::problem::Problem;
use super::{BUFFER_BYTES, Body, BoxError, Client, HEAD_BYTES, heads};
use crate::backend::{Connection, Io, Revoked, Target};
use crate::relay::{IN_FLIGHT, splice};

/// For a server to close its side after the answer; a connection that is dropped earlier looks cut off to it.
const GOODBYE: Duration = Duration::from_secs(1);
/// From the heads of an upgrade to the two connections behind them. Both are there already.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);

type ServerIo = TokioIo<Box<dyn Io>>;
type ServerConnection = http1::Connection<ServerIo, Incoming>;

/// What an upgrade leaves of the connection to the server; `None` when its VM is gone.
type Rest = Option<(Revoked, Box<dyn Any + Send>)>;

/// Answers a request, with the server's words or with ours.
pub(super) async fn answer(client: &Arc<Client>, request: Request<Incoming>) -> Response<Body> {
    match forward(client, request).await {
        Ok(response) => response,
        Err(problem) => {
            debug!("a request was not forwarded: {}", problem.text());
            problem.into_response()
        }
    }
}

async fn forward(client: &Arc<Client>, mut request: Request<Incoming>) -> Result<Response<Body>, Problem> {
    if request.method() == Method::CONNECT {
        return Err(Problem::bad_request("this router forwards requests, it opens no tunnels"));
    }
    let to_client = heads::upgrade(request.headers()).map(|_| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let target = target(client, choose(&head, client.local)?).await?;
    let port = target.port.ok_or_else(|| {
        let id = &target.id;
        Problem::unavailable(format!("{id} exposes no port: `aegis instance expose` opens one"))
    })?;
    heads::of_request(&mut head, client.peer);
    let request = Request::from_parts(head, body);

    let connection = client.gate.connect(&target.id, port).await?;
    let (mut server, driving) = shake_hands(client, connection, to_client.is_some()).await?;
    // No deadline: some servers answer when there is something to say. A client that leaves ends it.
    let mut response = server.send_request(request).await.map_err(|e| failed(&e))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let to_client =
            to_client.ok_or_else(|| Problem::bad_gateway("the server switched protocols unasked"))?;
        let to_server = hyper::upgrade::on(&mut response);
        let client_again = Arc::clone(client);
        client.tasks.spawn(async move {
            tokio::select! {
                () = relay(to_client, to_server, driving) => {}
                () = client_again.down.cancelled() => {}
            }
        });
        let (mut head, _) = response.into_parts();
        heads::of_response(&mut head.headers, true);
        let nothing = Empty::new().map_err(|never| match never {});
        return Ok(Response::from_parts(head, nothing.boxed_unsync()));
    }
    let (mut head, body) = response.into_parts();
    heads::of_response(&mut head.headers, false);
    head.version = Version::HTTP_11;
    Ok(Response::from_parts(head, Answer { body, ended: false, driving: Some(driving) }.boxed_unsync()))
}

async fn target(client: &Client, choice: Choice) -> Result<Target, Problem> {
    let backend = &client.gate.backend;
    let target = match &choice {
        Choice::Named(name) => backend.by_name(name).await.ok_or_else(|| unknown(name)),
        Choice::Label(label) => backend.by_host(label).await.ok_or_else(|| unknown(label)),
        Choice::Only => backend.only().await.ok_or_else(no_only),
    }?;
    if !target.enabled {
        return Err(crate::Refusal::Disabled.into());
    }
    Ok(target)
}

fn failed(error: &hyper::Error) -> Problem {
    Problem::retry(format!("the server in the instance gave no answer: {error}"))
}

/// Begins to speak HTTP with a server.
async fn shake_hands(
    client: &Client,
    connection: Connection,
    may_upgrade: bool,
) -> Result<(SendRequest<Incoming>, AbortOnDropHandle<Rest>), Problem> {
    let Connection { stream, revoked, guard } = connection;
    let (sender, http) = http1::Builder::new()
        .max_header_size(HEAD_BYTES)
        .max_buf_size(BUFFER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    let down = client.down.clone();
    let driving = client.tasks.spawn(async move {
        tokio::select! {
            rest = drive(http, revoked, guard, may_upgrade) => rest,
            () = down.cancelled() => None,
        }
    });
    Ok((sender, AbortOnDropHandle::new(driving)))
}

/// Moves the bytes of one request and its answer.
async fn drive(
    http: ServerConnection,
    mut revoked: Revoked,
    guard: Box<dyn Any + Send>,
    may_upgrade: bool,
) -> Rest {
    let mut driving = std::pin::pin!(async {
        if may_upgrade {
            http.with_upgrades().await
        } else {
            say_goodbye(http.without_shutdown().await?.io).await;
            Ok(())
        }
    });
    let driven = tokio::select! {
        driven = &mut driving => driven,
        () = &mut revoked => {
            // What was sent before is taken; then the body, if one is under way, ends with an error.
            let _ = timeout(IN_FLIGHT, driving).await;
            return None;
        }
    };
    if let Err(error) = driven {
        debug!("the connection of a request broke: {error}");
    }
    Some((revoked, guard))
}

/// Ends a connection whose work is done so that the server sees an end and no cut.
async fn say_goodbye(io: ServerIo) {
    let mut stream = io.into_inner();
    let goodbye = async {
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // A server that wants to go on talking has nobody to talk to.
    let _ = timeout(GOODBYE, goodbye).await;
}

/// Carries what a request was upgraded to.
async fn relay(to_client: OnUpgrade, to_server: OnUpgrade, driving: AbortOnDropHandle<Rest>) {
    let both = async {
        let server = to_server.await.ok()?;
        let client = to_client.await.ok()?;
        let (revoked, guard) = driving.await.ok()??;
        Some((client, Connection { stream: Box::new(TokioIo::new(server)), revoked, guard }))
    };
    let Ok(Some((client, connection))) = timeout(UPGRADE_DEADLINE, both).await else {
        return debug!("an upgrade came to nothing");
    };
    let mut client = TokioIo::new(client);
    if let Err(error) = splice(&mut client, connection).await {
        debug!("an upgraded connection was reset: {error}");
        reset(client.into_inner());
    }
}

fn reset(client: Upgraded) {
    if let Ok(parts) = client.downcast::<TokioIo<TcpStream>>() {
        // Without effect on a socket that is broken already.
        let _ = parts.io.inner().set_zero_linger();
    }
}

/// The server's body, and with it the connection that it comes from.
struct Answer {
    body: Incoming,
    ended: bool,
    driving: Option<AbortOnDropHandle<Rest>>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // Nobody asks for more after trailers.
        self.ended |= frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // After a whole answer the connection ends in its own time; otherwise the client has left, and it ends now.
        if (self.ended || self.body.is_end_stream())
            && let Some(driving) = self.driving.take()
        {
            driving.detach();
        }
    }
}
