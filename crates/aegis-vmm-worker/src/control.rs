//! The control socket: JSON-RPC for the daemon, any number of clients within a bound.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aegis_link::rpc::{self, Handler};
use aegis_proto::jsonrpc::{METHOD_NOT_FOUND, Message, RpcError, parse_params};
use aegis_proto::worker::{
    BootFailure, Confinement, EXITED, ExitReason, HIBERNATE, NET_POLICY, PAUSE, RESUME, STATUS, STOP, Stop,
    WAIT_READY, WorkerStatus,
};
use rustix::net::SocketFlags;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::driver::{Reply, Request};
use crate::network::NetThread;
use crate::streams::accept;
use crate::view::View;

/// More are closed at once: only the daemon is meant to connect.
const CLIENTS_MAX: usize = 32;

/// Accepts control clients.
pub(crate) struct Server {
    listener: UnixListener,
    methods: Arc<Methods>,
    clients: JoinSet<()>,
    /// Somebody has connected.
    met: bool,
}

impl Server {
    pub(crate) fn new(
        listener: UnixListener,
        requests: mpsc::Sender<Request>,
        view: watch::Receiver<View>,
        net: Option<NetThread>,
        confinement: Confinement,
    ) -> Self {
        let methods = Arc::new(Methods { requests, view, net, confinement });
        Self { listener, methods, clients: JoinSet::new(), met: false }
    }

    /// Serves clients; never returns. May be dropped at any time: clients are served on.
    pub(crate) async fn accept(&mut self) {
        loop {
            let stream = accept(&self.listener, &mut self.clients).await;
            self.admit(stream);
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        self.met = true;
        if self.clients.len() < CLIENTS_MAX {
            self.clients.spawn(serve(stream, Arc::clone(&self.methods)));
        } else {
            tracing::warn!("more than {CLIENTS_MAX} control clients");
        }
    }

    /// Waits until every client has been told about the end. The caller owns the deadline.
    pub(crate) async fn drain(mut self) {
        // A boot that fails at once is over before the daemon could connect, and it wants to know why.
        let failed = matches!(self.methods.view.borrow().boot, Some(Err(_)));
        if failed && !self.met {
            let stream = accept(&self.listener, &mut self.clients).await;
            self.admit(stream);
        }
        // Whoever has connected meanwhile is told as well.
        while let Some(stream) = self.waiting() {
            self.admit(stream);
        }
        while self.clients.join_next().await.is_some() {}
    }

    /// A connection that was not accepted yet. Asks the kernel, because the runtime may not have noticed it.
    fn waiting(&self) -> Option<UnixStream> {
        let fd =
            rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()?;
        UnixStream::from_std(fd.into()).ok()
    }
}

/// Serves one client until it leaves, or until it was told that the VM has ended.
async fn serve(stream: UnixStream, methods: Arc<Methods>) {
    let mut view = methods.view.clone();
    let (notifications, outgoing) = mpsc::channel(1);
    let (end, ended) = oneshot::channel();
    let stream = Ending { stream, ended: Some(ended) };
    let farewell = async move {
        if let Ok(view) = view.wait_for(|view| view.exited.is_some()).await.map(|view| view.clone()) {
            let _ = notifications.send(Message::notification(EXITED, &view.exited)).await;
            // Room again: the server has taken the message and writes it before it looks for anything else.
            let _ = notifications.reserve().await;
        }
        drop(end);
        std::future::pending::<()>().await
    };
    let served = tokio::select! {
        served = rpc::serve(stream, methods, Some(outgoing)) => served,
        () = farewell => unreachable!("it waits forever"),
    };
    if let Err(e) = served {
        tracing::debug!("a control client was cut off: {e}");
    }
}

/// A stream that seems to end when the other half of `ended` is dropped, so that the server finishes what it
/// has and closes.
struct Ending {
    stream: UnixStream,
    ended: Option<oneshot::Receiver<()>>,
}

impl AsyncRead for Ending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(ended) = &mut self.ended
            && Pin::new(ended).poll(cx).is_ready()
        {
            self.ended = None;
        }
        if self.ended.is_none() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Ending {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What clients can call.
struct Methods {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<View>,
    net: Option<NetThread>,
    confinement: Confinement,
}

#[async_trait::async_trait]
impl Handler for Methods {
    async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        match method {
            WAIT_READY => self.wait_ready().await,
            STATUS => Ok(self.status()),
            PAUSE => self.request(Request::Pause).await,
            RESUME => self.request(Request::Resume).await,
            HIBERNATE => match self.request(Request::Hibernate).await {
                // Asked again in the moment in which it was done.
                Err(_) if self.has_hibernated() => Ok(Value::Null),
                answered => answered,
            },
            STOP => {
                let Stop { grace_ms } = parse_params(params)?;
                let grace = Duration::from_millis(grace_ms);
                self.request(|reply| Request::Stop { grace, reply: Some(reply) }).await
            }
            NET_POLICY => {
                let policy = parse_params(params)?;
                self.net()?.set_policy(policy);
                Ok(Value::Null)
            }
            other => Err(RpcError {
                code: METHOD_NOT_FOUND,
                message: format!("unknown method `{other}`"),
                data: None,
            }),
        }
    }
}

impl Methods {
    async fn wait_ready(&self) -> Result<Value, RpcError> {
        let mut view = self.view.clone();
        let decided = view.wait_for(|view| view.boot.is_some()).await;
        let boot = decided.map_err(|_| gone())?.boot.clone();
        match boot.expect("waited for") {
            Ok(ready) => Ok(json!(ready)),
            Err(failure) => Err(refusal(&failure)),
        }
    }

    fn status(&self) -> Value {
        let view = self.view.borrow();
        json!(WorkerStatus {
            phase: view.phase,
            vmm_pid: view.vmm_pid,
            confinement: self.confinement.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn net(&self) -> Result<&NetThread, RpcError> {
        self.net.as_ref().ok_or_else(|| RpcError::failed("the VM was started without a network"))
    }

    fn has_hibernated(&self) -> bool {
        let view = self.view.borrow();
        view.exited.as_ref().is_some_and(|exited| exited.reason == ExitReason::Hibernated)
    }

    async fn request(&self, make: impl FnOnce(Reply) -> Request) -> Result<Value, RpcError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(make(reply)).await.map_err(|_| gone())?;
        match answer.await {
            Ok(Ok(())) => Ok(Value::Null),
            Ok(Err(message)) => Err(RpcError::failed(message)),
            Err(_) => Err(gone()),
        }
    }
}

fn refusal(failure: &BootFailure) -> RpcError {
    RpcError { data: Some(json!(failure)), ..RpcError::failed(&failure.message) }
}

fn gone() -> RpcError {
    RpcError::failed("the VM has ended")
}
