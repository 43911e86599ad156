//! A backend whose guests are servers on loopback.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aegis_router::{Backend, Connection, Gate, Io, Limits, Refusal, Target};
use aegis_types::{GuestPort, InstanceId, PublicPort};
use async_trait::async_trait;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

/// Far above what anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("the deadline of tests is generous")
}

pub(crate) fn guest(port: u16) -> GuestPort {
    GuestPort::new(port).unwrap()
}

pub(crate) fn id(number: u64) -> InstanceId {
    InstanceId::from_unix_nanos(number)
}

/// What a guest does when somebody connects to a port.
#[derive(Clone)]
pub(crate) enum Server {
    At(SocketAddr),
    Refuses(Refusal),
    /// The other end of this pipe, once.
    Pipe(Arc<Mutex<Option<tokio::io::DuplexStream>>>),
}

pub(crate) struct Fake {
    instances: Mutex<BTreeMap<String, Target>>,
    servers: Mutex<BTreeMap<(InstanceId, GuestPort), Server>>,
    events: Mutex<Vec<&'static str>>,
    pub(crate) counted: watch::Sender<usize>,
    /// Connections are held until it is set.
    pub(crate) awake: watch::Sender<bool>,
    pub(crate) wakes: AtomicUsize,
    /// VMs are gone.
    pub(crate) gone: watch::Sender<bool>,
}

struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            instances: Mutex::default(),
            servers: Mutex::default(),
            events: Mutex::default(),
            counted: watch::Sender::new(0),
            awake: watch::Sender::new(true),
            wakes: AtomicUsize::new(0),
            gone: watch::Sender::new(false),
        })
    }

    pub(crate) fn gate(self: &Arc<Self>) -> Arc<Gate> {
        self.gate_with(Limits::default())
    }

    pub(crate) fn gate_with(self: &Arc<Self>, limits: Limits) -> Arc<Gate> {
        Gate::new(Arc::clone(self) as Arc<dyn Backend>, limits)
    }

    pub(crate) fn add(&self, name: &str, number: u64, port: Option<u16>, enabled: bool) {
        let target = Target { id: id(number), port: port.map(guest), enabled };
        self.instances.lock().unwrap().insert(name.to_owned(), target);
    }

    pub(crate) fn serve(&self, number: u64, port: u16, server: Server) {
        self.servers.lock().unwrap().insert((id(number), guest(port)), server);
    }

    pub(crate) fn events(&self) -> Vec<&'static str> {
        self.events.lock().unwrap().clone()
    }

    pub(crate) async fn wait_for_count(&self, wanted: usize) {
        within(self.counted.subscribe().wait_for(|count| *count == wanted)).await.unwrap();
    }

    fn note(&self, event: &'static str) {
        self.events.lock().unwrap().push(event);
    }
}

#[async_trait]
impl Backend for Fake {
    async fn connect(
        &self,
        instance: &InstanceId,
        port: GuestPort,
        _deadline: Instant,
    ) -> Result<Connection, Refusal> {
        self.counted.send_modify(|count| *count += 1);
        let guard = Counted(self.counted.clone());
        self.note("counted");
        let mut awake = self.awake.subscribe();
        if !*awake.borrow_and_update() {
            // The first one wakes it, the others find that it is under way.
            if self.wakes.fetch_add(1, Ordering::SeqCst) == 0 {
                self.note("woken");
            }
            awake.wait_for(|awake| *awake).await.unwrap();
        }
        let server = self.servers.lock().unwrap().get(&(instance.clone(), port)).cloned();
        let stream: Box<dyn Io> = match server.ok_or(Refusal::NobodyListens)? {
            Server::At(address) => {
                Box::new(TcpStream::connect(address).await.map_err(|_| Refusal::NobodyListens)?)
            }
            Server::Refuses(refusal) => return Err(refusal),
            Server::Pipe(pipe) => Box::new(pipe.lock().unwrap().take().unwrap()),
        };
        self.note("opened");
        let mut gone = self.gone.subscribe();
        let revoked = async move {
            let _ = gone.wait_for(|gone| *gone).await;
        };
        Ok(Connection::new(stream, revoked, guard))
    }

    async fn by_name(&self, name: &str) -> Option<Target> {
        let instances = self.instances.lock().unwrap();
        instances.values().find(|target| target.id.as_str() == name).or_else(|| instances.get(name)).cloned()
    }

    async fn by_host(&self, label: &str) -> Option<Target> {
        self.by_name(&label.to_ascii_lowercase()).await
    }

    async fn only(&self) -> Option<Target> {
        let instances = self.instances.lock().unwrap();
        if instances.len() == 1 { instances.values().next().cloned() } else { None }
    }
}

/// A server on loopback.
pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A server that does this with every connection. Its task ends with the test's runtime.
pub(crate) async fn serve<F>(each: impl Fn(TcpStream) -> F + Send + 'static) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(each(stream));
        }
    });
    Server::At(address)
}

pub(crate) async fn dial(port: PublicPort) -> TcpStream {
    within(TcpStream::connect(("127.0.0.1", port.get()))).await.unwrap()
}

/// The connection is reset, whatever comes before.
pub(crate) async fn assert_reset(client: &mut TcpStream) {
    let error = within(client.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
