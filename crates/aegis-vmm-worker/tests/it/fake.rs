//! A VMM whose guests are tasks.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use aegis_link::guest::{GuestLink, receive_hello, send_parked};
use aegis_link::rpc::{self, Handler};
use aegis_proto::control::{PARK, SHUTDOWN};
use aegis_proto::hello::{Greeting, Hello, Welcome};
use aegis_proto::jsonrpc::RpcError;
use aegis_proto::service::Service;
use aegis_types::{Ram, VmSpec};
use aegis_vmm::{Capabilities, Carrier, SavedState, Start, StartTimes, Vm, VmExit, Vmm, VmmError};
use async_trait::async_trait;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::watch;

/// Any time that is told apart from zero.
pub(crate) const MOMENT: Duration = Duration::from_micros(1);

/// How a guest behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Guest {
    /// As it should.
    Normal,
    /// Never answers the greeting.
    Silent,
    /// Answers everything but does not switch off.
    Stubborn,
    /// Answers the first greeting only.
    NeverAgain,
    /// Answers the greeting, then sends garbage.
    Hostile,
    /// The VMM dies at once.
    Dies(&'static str),
    /// There is no kernel.
    Missing,
    /// Refuses to be parked.
    Restless,
}

/// What becomes of an attempt to save.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Save {
    /// It works.
    Works,
    /// It does not, and the VM runs on.
    Fails(&'static str),
    /// It takes for ever, with half a state written.
    Hangs,
}

#[derive(Clone)]
pub(crate) struct FakeVmm {
    guests: Arc<Mutex<VecDeque<Guest>>>,
    saves: Arc<Mutex<VecDeque<Save>>>,
    log: watch::Sender<Vec<String>>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    hellos: Vec<Hello>,
    rams: Vec<Ram>,
    exit: Option<watch::Sender<Option<VmExit>>>,
    link: Option<watch::Sender<bool>>,
    alive: usize,
    boots: usize,
}

impl FakeVmm {
    /// One guest per boot, in order.
    pub(crate) fn new(guests: impl Into<VecDeque<Guest>>) -> Self {
        let guests = Arc::new(Mutex::new(guests.into()));
        Self { guests, saves: Arc::default(), log: watch::channel(Vec::new()).0, shared: Arc::default() }
    }

    /// The outcome of each attempt to save; those after them work.
    pub(crate) fn saves(self, saves: impl Into<VecDeque<Save>>) -> Self {
        *self.saves.lock().unwrap() = saves.into();
        self
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    fn record(&self, call: &str) {
        self.log.send_modify(|log| log.push(call.to_owned()));
    }

    /// Everything that was asked of VMM and guest.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    /// Waits until this was asked.
    pub(crate) async fn called(&self, call: &str) {
        self.log.subscribe().wait_for(|log| log.iter().any(|c| c == call)).await.unwrap();
    }

    /// Waits until the link was opened so many times.
    pub(crate) async fn connected(&self, times: usize) {
        let count = |log: &Vec<String>| log.iter().filter(|c| *c == "connect").count();
        self.log.subscribe().wait_for(|log| count(log) >= times).await.unwrap();
    }

    /// Where the memory of each VM was.
    pub(crate) fn rams(&self) -> Vec<Ram> {
        self.shared().rams.clone()
    }

    pub(crate) fn hellos(&self) -> Vec<Hello> {
        self.shared().hellos.clone()
    }

    /// VMs that were neither reaped nor dropped.
    pub(crate) fn alive(&self) -> usize {
        self.shared().alive
    }

    /// Ends the current VM.
    pub(crate) fn exit(&self, exit: VmExit) {
        self.shared().exit.as_ref().unwrap().send_replace(Some(exit));
    }

    /// Makes the guest close its link.
    pub(crate) fn drop_link(&self) {
        self.shared().link.as_ref().unwrap().send_replace(true);
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    fn capabilities(&self) -> &Capabilities {
        &Capabilities { name: "fake", pause: true, save: true }
    }

    async fn boot(&self, spec: &VmSpec, start: Start<'_>) -> Result<Box<dyn Vm>, VmmError> {
        match start {
            Start::Boot => self.record("boot"),
            Start::Restore { state } => {
                self.record(&format!("restore {}", std::fs::read_to_string(state).unwrap()))
            }
        }
        self.shared().rams.push(spec.ram.clone());
        let guest = self.guests.lock().unwrap().pop_front().unwrap();
        if guest == Guest::Missing {
            let source = std::io::ErrorKind::NotFound.into();
            return Err(VmmError::Io { context: "cannot read the kernel `/fake`".to_owned(), source });
        }
        let dead = match guest {
            Guest::Dies(why) => Some(VmExit::Died(why.to_owned())),
            _ => None,
        };
        let exit = watch::channel(dead).0;
        let mut shared = self.shared();
        shared.alive += 1;
        shared.boots += 1;
        shared.exit = Some(exit.clone());
        let number = shared.boots;
        drop(shared);
        let restored = start != Start::Boot;
        Ok(Box::new(FakeVm { vmm: self.clone(), guest, exit, number, restored }))
    }
}

struct FakeVm {
    vmm: FakeVmm,
    guest: Guest,
    exit: watch::Sender<Option<VmExit>>,
    number: usize,
    restored: bool,
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.vmm.shared().alive -= 1;
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn pid(&self) -> Option<u32> {
        None
    }

    async fn started(&self) -> Result<StartTimes, VmmError> {
        if !self.restored {
            return Ok(StartTimes { vmm: MOMENT, load: Duration::ZERO });
        }
        // The host has to be there before the CPUs run.
        self.vmm.connected(1).await;
        Ok(StartTimes { vmm: MOMENT, load: 2 * MOMENT })
    }

    async fn connect(&self) -> Result<Box<dyn Carrier>, VmmError> {
        self.vmm.record("connect");
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (link, mut dropped) = watch::channel(false);
        self.vmm.shared().link = Some(link);
        let life = Life {
            vmm: self.vmm.clone(),
            guest: self.guest,
            exit: self.exit.clone(),
            parked: Arc::default(),
        };
        let mut exit = self.exit.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = life.live(Port(Arc::new(Mutex::new(theirs))), &mut dropped) => {}
                _ = exit.wait_for(Option::is_some) => {}
            }
        });
        Ok(Box::new(ours))
    }

    fn files(&self) -> Option<std::os::unix::net::UnixStream> {
        None
    }

    fn content(&self) -> Option<std::os::unix::net::UnixStream> {
        None
    }

    fn ethernet(&self) -> Option<std::os::unix::net::UnixStream> {
        None
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.vmm.record("pause");
        Ok(())
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.vmm.record("resume");
        Ok(())
    }

    async fn save(&self, state: &Path) -> Result<SavedState, VmmError> {
        self.vmm.record("save");
        let save = self.vmm.saves.lock().unwrap().pop_front().unwrap_or(Save::Works);
        match save {
            Save::Works => {
                std::fs::write(state, "devices").unwrap();
                Ok(SavedState { bytes: 7, sha256: "hash".to_owned() })
            }
            Save::Fails(message) => {
                Err(VmmError::Refused { command: "save".to_owned(), message: message.to_owned() })
            }
            Save::Hangs => {
                std::fs::write(state, "half").unwrap();
                std::future::pending().await
            }
        }
    }

    fn kill(&self) {
        self.vmm.record("kill");
        self.exit.send_if_modified(|exit| exit.is_none() && exit.replace(VmExit::Killed).is_none());
    }

    async fn exited(&self) -> VmExit {
        self.exit.subscribe().wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }

    fn console_tail(&self) -> Vec<String> {
        vec![format!("console of boot {}", self.number)]
    }
}

/// The inside of a guest.
#[derive(Clone)]
struct Life {
    vmm: FakeVmm,
    guest: Guest,
    exit: watch::Sender<Option<VmExit>>,
    parked: Arc<AtomicBool>,
}

impl Life {
    /// One session after the other on the same port, as long as it is parked between them.
    async fn live(self, port: Port, dropped: &mut watch::Receiver<bool>) {
        loop {
            self.session(port.clone(), dropped).await;
            if !self.parked.swap(false, Ordering::Relaxed) || send_parked(&mut port.clone()).await.is_err() {
                return;
            }
        }
    }

    async fn session(&self, mut carrier: Port, dropped: &mut watch::Receiver<bool>) {
        // The host may leave instead.
        let Ok(hello) = receive_hello(&mut carrier).await else { return };
        let first = self.vmm.shared().hellos.is_empty();
        self.vmm.shared().hellos.push(hello.clone());
        if self.guest == Guest::Silent || (self.guest == Guest::NeverAgain && !first) {
            return std::future::pending().await;
        }
        let welcome =
            Welcome { generation: 1, nonce: hello.nonce, version: "test".to_owned(), boottime_ns: 1 };
        if self.guest == Guest::Hostile {
            carrier.write_all(&Greeting::Welcome(welcome).encode()).await.unwrap();
            carrier.write_all(&[0xff; 64]).await.unwrap();
            return std::future::pending().await;
        }
        let mut link = GuestLink::welcome(carrier, welcome).await.unwrap();
        loop {
            let incoming = tokio::select! {
                incoming = link.accept() => incoming,
                _ = dropped.wait_for(|&dropped| dropped) => return,
            };
            let Some(incoming) = incoming else {
                link.ended().await;
                return;
            };
            let life = self.clone();
            tokio::spawn(async move {
                match incoming.accept().await.unwrap().unwrap() {
                    (Service::Control, stream) => {
                        let _ = rpc::serve(stream, Arc::new(life), None).await;
                    }
                    (_, mut stream) => {
                        let mut all = Vec::new();
                        let _ = stream.read_to_end(&mut all).await;
                        all.extend_from_slice(b"|end");
                        let _ = stream.write_all(&all).await;
                        let _ = stream.shutdown().await;
                    }
                }
            });
        }
    }
}

#[async_trait]
impl Handler for Life {
    async fn call(&self, method: &str, _: Value) -> Result<Value, RpcError> {
        self.vmm.record(&format!("guest {method}"));
        if method == PARK {
            if self.guest == Guest::Restless {
                return Err(RpcError::failed("no rest"));
            }
            self.parked.store(true, Ordering::Relaxed);
        }
        if method == SHUTDOWN && self.guest != Guest::Stubborn {
            self.exit.send_replace(Some(VmExit::GuestShutdown));
        }
        Ok(Value::Null)
    }
}

/// A port that outlives the sessions on it.
#[derive(Clone)]
struct Port(Arc<Mutex<DuplexStream>>);

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Closing a port does not hang up.
        self.poll_flush(cx)
    }
}
