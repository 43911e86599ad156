//! A VMM whose guests are tasks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use aegis_link::guest::{GuestLink, receive_hello};
use aegis_link::rpc::{self, Handler};
use aegis_proto::control::SHUTDOWN;
use aegis_proto::hello::{Greeting, Hello, Welcome};
use aegis_proto::jsonrpc::RpcError;
use aegis_proto::service::Service;
use aegis_types::VmSpec;
use aegis_vmm::{Capabilities, Carrier, Vm, VmExit, Vmm, VmmError};
use async_trait::async_trait;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;

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
}

#[derive(Clone)]
pub(crate) struct FakeVmm {
    guests: Arc<Mutex<VecDeque<Guest>>>,
    log: watch::Sender<Vec<String>>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    hellos: Vec<Hello>,
    exit: Option<watch::Sender<Option<VmExit>>>,
    link: Option<watch::Sender<bool>>,
    alive: usize,
    boots: usize,
}

impl FakeVmm {
    /// One guest per boot, in order.
    pub(crate) fn new(guests: impl Into<VecDeque<Guest>>) -> Self {
        let guests = Arc::new(Mutex::new(guests.into()));
        Self { guests, log: watch::channel(Vec::new()).0, shared: Arc::default() }
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
        &Capabilities { name: "fake", pause: true }
    }

    async fn boot(&self, _: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        self.record("boot");
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
        Ok(Box::new(FakeVm { vmm: self.clone(), guest, exit, number }))
    }
}

struct FakeVm {
    vmm: FakeVmm,
    guest: Guest,
    exit: watch::Sender<Option<VmExit>>,
    number: usize,
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

    async fn connect(&self) -> Result<Box<dyn Carrier>, VmmError> {
        self.vmm.record("connect");
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (link, mut dropped) = watch::channel(false);
        self.vmm.shared().link = Some(link);
        let life = Life { vmm: self.vmm.clone(), guest: self.guest, exit: self.exit.clone() };
        let mut exit = self.exit.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = life.live(theirs, &mut dropped) => {}
                _ = exit.wait_for(Option::is_some) => {}
            }
        });
        Ok(Box::new(ours))
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.vmm.record("pause");
        Ok(())
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.vmm.record("resume");
        Ok(())
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
}

impl Life {
    async fn live(self, mut carrier: DuplexStream, dropped: &mut watch::Receiver<bool>) {
        let hello = receive_hello(&mut carrier).await.unwrap();
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
            let Some(incoming) = incoming else { return };
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
        if method == SHUTDOWN && self.guest != Guest::Stubborn {
            self.exit.send_replace(Some(VmExit::GuestShutdown));
        }
        Ok(Value::Null)
    }
}
