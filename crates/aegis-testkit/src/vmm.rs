//! A VMM whose machines are tasks.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use aegis_harness::Harness;
use aegis_harness::sys::Sys as _;
use aegis_harness::sys::fake::FakeSys;
use aegis_proto::worker::CONSOLE_FILE;
use aegis_types::VmSpec;
use aegis_vmm::{Capabilities, Carrier, SavedState, Start, StartTimes, Vm, VmExit, Vmm, VmmError};
use async_trait::async_trait;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::gate::{Gate, Gated};
use crate::remote::{Command, Remote};
use crate::{Guest, liar};

/// What a virtio port holds is of this order.
const PORT_BYTES: usize = 64 << 10;
const BACKEND: &str = "fake";
const SIGSTOP: u8 = 19;
const SIGCONT: u8 = 18;

/// Boots [`Guest`]s. Must be used in a tokio runtime with everything enabled.
#[derive(Debug)]
pub struct FakeVmm {
    script: Mutex<Script>,
}

#[derive(Debug)]
struct Script {
    guests: std::vec::IntoIter<Guest>,
    last: Guest,
    boots: usize,
}

impl FakeVmm {
    /// A VMM that boots these guests one after the other, and the last one again and again; a normal one if there
    /// is none.
    pub fn new(guests: Vec<Guest>) -> Self {
        let script = Script { guests: guests.into_iter(), last: Guest::Normal, boots: 0 };
        Self { script: Mutex::new(script) }
    }

    fn next(&self) -> (Guest, usize) {
        let mut script = self.script.lock().expect("no panic while held");
        script.boots += 1;
        if let Some(guest) = script.guests.next() {
            script.last = guest;
        }
        (script.last.clone(), script.boots)
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    fn capabilities(&self) -> &Capabilities {
        &Capabilities { name: BACKEND, pause: true, save: false }
    }

    async fn boot(&self, spec: &VmSpec, start: Start<'_>) -> Result<Box<dyn Vm>, VmmError> {
        if start != Start::Boot {
            return Err(VmmError::Unsupported { backend: BACKEND, what: "restore a VM" });
        }
        let (guest, number) = self.next();
        let io = |source| VmmError::Io { context: "cannot make the files of the VM".to_owned(), source };
        let remote = Remote::listen(&spec.runtime_dir).map_err(io)?;
        let console = Console::create(&spec.runtime_dir.join(CONSOLE_FILE)).map_err(io)?;
        console.print(&format!("console of boot {number}"));
        let (ports, connected) = mpsc::unbounded_channel();
        let machine = Arc::new(Machine {
            sys: Arc::new(FakeSys::new()),
            gate: Gate::default(),
            console,
            hang_up: Notify::new(),
            unplugged: watch::Sender::new(None),
            exit: watch::Sender::new(None),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&machine).run(guest, remote, connected));
        Ok(Box::new(FakeVm { machine, ports, _tasks: tasks }))
    }
}

struct FakeVm {
    machine: Arc<Machine>,
    ports: mpsc::UnboundedSender<DuplexStream>,
    /// Dropping it ends the machine.
    _tasks: JoinSet<()>,
}

#[async_trait]
impl Vm for FakeVm {
    fn pid(&self) -> Option<u32> {
        None
    }

    async fn started(&self) -> Result<StartTimes, VmmError> {
        Ok(StartTimes::default())
    }

    async fn connect(&self) -> Result<Box<dyn Carrier>, VmmError> {
        let (host, guest) = duplex(PORT_BYTES);
        self.ports.send(guest).map_err(|_| VmmError::Ended("it is gone".to_owned()))?;
        Ok(Box::new(host))
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
        self.machine.gate.halt();
        self.machine.signal(SIGSTOP);
        Ok(())
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.machine.signal(SIGCONT);
        self.machine.gate.go_on();
        Ok(())
    }

    async fn save(&self, _: &Path) -> Result<SavedState, VmmError> {
        Err(VmmError::Unsupported { backend: BACKEND, what: "save a VM" })
    }

    fn kill(&self) {
        self.machine.unplug(VmExit::Killed);
    }

    async fn exited(&self) -> VmExit {
        let mut exit = self.machine.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await.expect("the sender is in the machine, which we hold");
        exit.clone().expect("waited for")
    }

    fn console_tail(&self) -> Vec<String> {
        self.machine.console.tail()
    }
}

struct Machine {
    sys: Arc<FakeSys>,
    gate: Gate,
    console: Console,
    hang_up: Notify,
    /// How it is to end.
    unplugged: watch::Sender<Option<VmExit>>,
    /// How it has ended.
    exit: watch::Sender<Option<VmExit>>,
}

impl Machine {
    async fn run(
        self: Arc<Self>,
        guest: Guest,
        remote: Remote,
        ports: mpsc::UnboundedReceiver<DuplexStream>,
    ) {
        let mut unplugged = self.unplugged.subscribe();
        let exit = tokio::select! {
            biased;
            Ok(exit) = unplugged.wait_for(Option::is_some) => exit.clone().expect("waited for"),
            () = self.sys.powered_off() => VmExit::GuestShutdown,
            Err(error) = remote.serve(|command| self.perform(command)) => {
                VmExit::Died(format!("the test cannot be heard: {error}"))
            }
            exit = self.live(guest, ports) => exit,
        };
        // The harness is gone with the future above; its processes are not.
        self.sys.destroy();
        self.exit.send_replace(Some(exit));
    }

    /// The inside of the VM.
    async fn live(&self, guest: Guest, mut ports: mpsc::UnboundedReceiver<DuplexStream>) -> VmExit {
        match guest {
            Guest::Silent => std::future::pending().await,
            Guest::Dies(words) => return VmExit::Died(words),
            Guest::Normal => {
                let harness = Harness::boot(Arc::clone(&self.sys) as _);
                while let Some(port) = ports.recv().await {
                    let port = Gated::new(port, self.gate.clone());
                    tokio::select! {
                        end = harness.serve(port) => tracing::info!(?end, "a session of the guest ended"),
                        () = self.hang_up.notified() => tracing::info!("the guest hangs up"),
                    }
                }
            }
            liar => {
                while let Some(port) = ports.recv().await {
                    liar::serve(&liar, &self.sys, Gated::new(port, self.gate.clone())).await;
                }
            }
        }
        // The VM was dropped, and this future is about to be.
        std::future::pending().await
    }

    fn perform(&self, command: Command) {
        match command {
            Command::Die(words) => self.unplug(VmExit::Died(words)),
            Command::PowerOff => self.sys.power_off(),
            Command::DropLink => self.hang_up.notify_one(),
            Command::Garble => self.gate.garble(),
            Command::Print(line) => self.console.print(&line),
        }
    }

    fn unplug(&self, exit: VmExit) {
        self.unplugged.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(exit);
            }
            first
        });
    }

    fn signal(&self, signal: u8) {
        if let Err(error) = self.sys.signal_all(signal) {
            tracing::warn!(%error, signal, "cannot signal the processes of the guest");
        }
    }
}

/// The console: a file, and its lines for error messages.
struct Console(Mutex<(File, Vec<String>)>);

impl Console {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new((File::create(path)?, Vec::new()))))
    }

    fn print(&self, line: &str) {
        let (file, lines) = &mut *self.0.lock().expect("no panic while held");
        // A test that reads the file will miss the line.
        let _ = writeln!(file, "{line}");
        lines.push(line.to_owned());
    }

    fn tail(&self) -> Vec<String> {
        self.0.lock().expect("no panic while held").1.clone()
    }
}
