//! A running QEMU process: how it is started, and the task that owns it until it is reaped.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aegis_types::VmSpec;
use aegis_vmm::{Carrier, SavedState, StartTimes, Vm, VmExit, VmmError};
use async_trait::async_trait;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::args::{self, Fds};
use crate::console::{Log, Tail, pump};
use crate::directory::Directory;
use crate::qmp::{self, Event, QmpError, Shutdown};
use crate::{save, sys};

/// Socket of the guest link in the runtime directory.
const LINK_SOCKET: &str = "link.sock";
/// From the start of the process to its readiness for QMP: it has loaded the kernel by then.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// For reading a saved state of a few dozen kilobytes.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);
/// For what is left in the pipes of a process that has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// What a machine begins with, everything at hand.
pub(crate) enum Begin {
    /// The kernel, which is told the rate of the time-stamp counter if there is one.
    Boot { tsc_khz: Option<u64> },
    /// The saved state in this file.
    Restore { state: OwnedFd },
}

/// A QEMU process. Dropping it kills the process and removes its socket.
pub(crate) struct Machine {
    pid: Option<u32>,
    socket: LinkSocket,
    qmp: qmp::Client,
    /// Until somebody takes them.
    ethernet: Mutex<Option<StdUnixStream>>,
    files: Mutex<Option<StdUnixStream>>,
    content: Mutex<Option<StdUnixStream>>,
    observed: Arc<watch::Sender<Observed>>,
    started: watch::Receiver<Option<StartTimes>>,
    console: Tail,
    kill: watch::Sender<bool>,
    exit: watch::Receiver<Option<VmExit>>,
    supervisor: JoinHandle<()>,
}

impl Machine {
    /// Starts the process. `template` is the memory for [`aegis_types::Ram::Template`].
    pub(crate) fn start(spec: &VmSpec, template: Option<&OwnedFd>, begin: Begin) -> Result<Self, VmmError> {
        let io =
            |what: &'static str| move |source| VmmError::Io { context: format!("cannot {what}"), source };
        let (socket, listener) = LinkSocket::bind(spec).map_err(io("make the socket of the guest link"))?;
        let (ours, theirs) = StdUnixStream::pair().map_err(io("make the QMP connection"))?;
        ours.set_nonblocking(true).map_err(io("make the QMP connection"))?;
        let ours = UnixStream::from_std(ours).map_err(io("make the QMP connection"))?;
        let (ethernet, device) = StdUnixStream::pair().map_err(io("make the network"))?;
        let (files, port) = StdUnixStream::pair().map_err(io("make the stream for directories"))?;
        let (content, disk) = StdUnixStream::pair().map_err(io("make the stream for content"))?;
        let log = Log::open(&spec.runtime_dir).map_err(io("open the console log"))?;

        let (listener, theirs) = (OwnedFd::from(listener), OwnedFd::from(theirs));
        let (device, port, disk) = (OwnedFd::from(device), OwnedFd::from(port), OwnedFd::from(disk));
        let fds = Fds {
            link: listener.as_raw_fd(),
            qmp: theirs.as_raw_fd(),
            files: port.as_raw_fd(),
            content: disk.as_raw_fd(),
            ethernet: device.as_raw_fd(),
            template: template.map(|fd| fd.as_raw_fd()),
        };
        // The directory is for saving: QEMU reaches a socket through it, as we do.
        let mut inherited = vec![&listener, &theirs, &device, &port, &disk, socket.directory.fd()];
        inherited.extend(template);
        let (arguments, incoming) = match &begin {
            Begin::Boot { tsc_khz } => (args::Begin::Boot { tsc_khz: *tsc_khz }, None),
            Begin::Restore { state } => {
                inherited.push(state);
                (args::Begin::Incoming, Some(state.as_raw_fd()))
            }
        };
        let mut command = Command::new(&spec.vmm_path);
        command
            .args(args::arguments(spec, fds, arguments))
            // Nothing of our environment is QEMU's business.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        sys::inherit(&mut command, &inherited);
        let spawned = Instant::now();
        let child = command
            .spawn()
            .map_err(|source| VmmError::Spawn { program: spec.vmm_path.display().to_string(), source })?;
        // From here on only QEMU holds them, so that they end with it.
        drop((listener, theirs, device, port, disk, begin));

        let pid = child.id();
        let (qmp, connection, ready) = qmp::connect(ours);
        let observed = Arc::new(watch::Sender::default());
        let console = Tail::default();
        let (kill, killed) = watch::channel(false);
        let (exit_tx, exit) = watch::channel(None);
        let (started_tx, started) = watch::channel(None);
        let opening = Opening {
            spawned,
            qmp: qmp.clone(),
            ready,
            incoming,
            resumed: observed.subscribe(),
            grown: args::grown_disks(spec),
        };
        let process = Process {
            child,
            console: console.clone(),
            log,
            killed,
            observed: Arc::clone(&observed),
            started: started_tx,
        };
        let supervisor = tokio::spawn(async move {
            // Nobody left to tell is no reason to do anything else.
            let _ = exit_tx.send(Some(process.supervise(connection, opening).await));
        });
        let [ethernet, files, content] = [ethernet, files, content].map(|stream| Mutex::new(Some(stream)));
        Ok(Self {
            pid,
            socket,
            qmp,
            ethernet,
            files,
            content,
            observed,
            started,
            console,
            kill,
            exit,
            supervisor,
        })
    }
}

/// What a process has told unasked.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// The CPUs have been started.
    resumed: bool,
    /// The state of the last migration in QEMU's words.
    pub(crate) migration: Option<String>,
}

/// The first talk with a new process.
struct Opening {
    spawned: Instant,
    qmp: qmp::Client,
    ready: oneshot::Receiver<()>,
    /// Descriptor of the saved state in the process.
    incoming: Option<RawFd>,
    resumed: watch::Receiver<Observed>,
    /// Nodes of disks that are longer than the saved state says, and their lengths.
    grown: Vec<(String, u64)>,
}

impl Opening {
    /// Until the CPUs run.
    async fn talk(mut self) -> Result<StartTimes, VmmError> {
        let Some(fd) = self.incoming else {
            let vmm = within(START_DEADLINE, "the first request", self.vmm_ready()).await?;
            return Ok(StartTimes { vmm, load: Duration::ZERO });
        };
        // Asked at once, so that nothing waits for an answer.
        let qmp = self.qmp.clone();
        let asked = async {
            tokio::try_join!(
                qmp.execute_with(
                    "migrate-set-capabilities",
                    json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]}),
                ),
                qmp.execute_with("migrate-incoming", json!({"uri": format!("fd:{fd}")})),
            )
        };
        let answered = async { tokio::try_join!(self.vmm_ready(), asked) };
        let (vmm, _) = within(START_DEADLINE, "the first request", answered).await?;
        // A state that cannot be loaded ends QEMU, which gives the reason.
        let resumed = async {
            becomes(&mut self.resumed, |observed| observed.resumed).await;
            Ok(self.spawned.elapsed().saturating_sub(vmm))
        };
        let load = within(LOAD_DEADLINE, "migrate-incoming", resumed).await?;
        // The files are that long already: this is what tells the guest. Not before: until its state is loaded, QEMU leaves
        // the disks alone.
        for (node, bytes) in &self.grown {
            let length = json!({"node-name": node, "size": bytes});
            self.qmp.execute_with("block_resize", length).await?;
        }
        Ok(StartTimes { vmm, load })
    }

    async fn vmm_ready(&mut self) -> Result<Duration, VmmError> {
        match (&mut self.ready).await {
            Ok(()) => Ok(self.spawned.elapsed()),
            Err(_) => Err(VmmError::Ended("it closed the QMP connection".to_owned())),
        }
    }
}

async fn within<T>(
    limit: Duration,
    command: &str,
    what: impl Future<Output = Result<T, VmmError>>,
) -> Result<T, VmmError> {
    match tokio::time::timeout(limit, what).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let timeout_ms = u64::try_from(limit.as_millis()).expect("a small constant");
            Err(VmmError::Timeout { command: command.to_owned(), timeout_ms })
        }
    }
}

fn describe(exit: VmExit) -> String {
    match exit {
        VmExit::Died(why) => why,
        VmExit::Killed => "it was killed".to_owned(),
        VmExit::GuestShutdown => "it ended without an error".to_owned(),
    }
}

#[async_trait]
impl Vm for Machine {
    fn pid(&self) -> Option<u32> {
        // A reaped process has no id any more: the number may be somebody else's.
        self.pid.filter(|_| self.exit.borrow().is_none())
    }

    async fn started(&self) -> Result<StartTimes, VmmError> {
        let mut started = self.started.clone();
        tokio::select! {
            biased;
            Ok(times) = started.wait_for(Option::is_some) => Ok(times.expect("waited for")),
            exit = self.exited() => Err(VmmError::Ended(describe(exit))),
        }
    }

    async fn connect(&self) -> Result<Box<dyn Carrier>, VmmError> {
        match UnixStream::connect(self.socket.path()).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(source) => {
                Err(VmmError::Io { context: "cannot connect to the guest link".to_owned(), source })
            }
        }
    }

    fn ethernet(&self) -> Option<StdUnixStream> {
        self.ethernet.lock().expect("no panic while held").take()
    }

    fn files(&self) -> Option<StdUnixStream> {
        self.files.lock().expect("no panic while held").take()
    }

    fn content(&self) -> Option<StdUnixStream> {
        self.content.lock().expect("no panic while held").take()
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.qmp.execute("stop").await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.qmp.execute("cont").await
    }

    async fn save(&self, state: &Path) -> Result<SavedState, VmmError> {
        save::save(&self.qmp, &self.observed, &self.socket.directory, state).await
    }

    fn kill(&self) {
        self.kill.send_replace(true);
    }

    async fn exited(&self) -> VmExit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(VmExit::Killed),
            // The supervisor was aborted with its runtime, which killed the process.
            Err(_) => VmExit::Killed,
        }
    }

    fn console_tail(&self) -> Vec<String> {
        self.console.lines()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The task owns the process, and killing is what dropping that does.
        self.supervisor.abort();
    }
}

/// The link socket, removed with its owner.
struct LinkSocket {
    directory: Directory,
    path: PathBuf,
}

impl LinkSocket {
    fn bind(spec: &VmSpec) -> io::Result<(Self, UnixListener)> {
        let directory = Directory::open(&spec.runtime_dir)?;
        let listener = directory.listen(LINK_SOCKET)?;
        Ok((Self { directory, path: spec.runtime_dir.join(LINK_SOCKET) }, listener))
    }

    fn path(&self) -> PathBuf {
        self.directory.reach(LINK_SOCKET)
    }
}

impl Drop for LinkSocket {
    fn drop(&mut self) {
        // The directory may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// What the supervising task owns.
struct Process {
    child: Child,
    console: Tail,
    log: Log,
    killed: watch::Receiver<bool>,
    observed: Arc<watch::Sender<Observed>>,
    started: watch::Sender<Option<StartTimes>>,
}

impl Process {
    /// Serves the process until it has ended and was reaped. One that does not start is ended.
    async fn supervise(mut self, connection: qmp::Connection<UnixStream>, opening: Opening) -> VmExit {
        let stdout = self.child.stdout.take().expect("piped");
        let stderr = self.child.stderr.take().expect("piped");
        let errors = Tail::default();
        let shutdown: Arc<Mutex<Option<Shutdown>>> = Arc::default();
        let (broken_tx, mut broken) = watch::channel::<Option<String>>(None);

        let qmp = async {
            let record = |event| match event {
                Event::Shutdown(cause) => *shutdown.lock().expect("no panic while held") = Some(cause),
                Event::Resumed => self.observed.send_modify(|observed| observed.resumed = true),
                Event::Migration(status) => {
                    self.observed.send_modify(|observed| observed.migration = Some(status));
                }
            };
            if let Err(e @ QmpError::Violation(_)) = connection.drive(record).await {
                broken_tx.send_replace(Some(e.to_string()));
            }
        };
        let opening = async {
            match opening.talk().await {
                Ok(times) => drop(self.started.send_replace(Some(times))),
                // Its own end says more.
                Err(VmmError::Ended(_)) => {}
                Err(e) => drop(broken_tx.send_replace(Some(e.to_string()))),
            }
        };
        let outputs = async {
            tokio::join!(
                pump(stdout, self.console, Some(self.log)),
                pump(stderr, errors.clone(), None),
                qmp,
                opening,
            )
        };
        let mut outputs = pin!(outputs);
        let mut drained = false;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                _ = &mut outputs, if !drained => {
                    drained = true;
                    continue;
                }
                () = becomes(&mut self.killed, |&killed| killed) => {}
                () = becomes(&mut broken, Option::is_some) => {}
            }
            // Failing means that it has ended by itself.
            let _ = self.child.start_kill();
            break self.child.wait().await;
        };
        if !drained {
            // The pipes end with the process; the deadline is for one that gave them away.
            let _ = tokio::time::timeout(DRAIN_DEADLINE, outputs).await;
        }
        if let Some(why) = broken.borrow().clone() {
            return VmExit::Died(why);
        }
        let shutdown = shutdown.lock().expect("no panic while held").take();
        judge(&status, shutdown, *self.killed.borrow(), &errors.lines())
    }
}

/// Waits until a value is as wanted; forever if its sender goes before.
pub(crate) async fn becomes<T>(value: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    if value.wait_for(wanted).await.is_err() {
        std::future::pending().await
    }
}

/// Why the process ended.
fn judge(
    status: &io::Result<ExitStatus>,
    shutdown: Option<Shutdown>,
    killed: bool,
    errors: &[String],
) -> VmExit {
    match (status, shutdown) {
        (_, Some(Shutdown { guest: true, .. })) => VmExit::GuestShutdown,
        _ if killed => VmExit::Killed,
        (_, Some(Shutdown { reason, .. })) => VmExit::Died(format!("it was told to quit ({reason})")),
        (Ok(status), None) if status.success() => VmExit::GuestShutdown,
        (Ok(status), None) if errors.is_empty() => VmExit::Died(status.to_string()),
        (Ok(status), None) => VmExit::Died(format!("{status}: {}", errors.join("; "))),
        (Err(e), None) => VmExit::Died(format!("it could not be waited for: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn the_end_of_the_process_is_judged_by_what_is_known() {
        let exited = |code: i32| Ok(ExitStatus::from_raw(code << 8));
        let by = |guest| Some(Shutdown { guest, reason: "host-signal".into() });
        let errors = ["no such option".to_owned()];
        assert_eq!(judge(&exited(0), by(true), true, &[]), VmExit::GuestShutdown);
        assert_eq!(judge(&exited(0), None, false, &[]), VmExit::GuestShutdown);
        assert_eq!(judge(&Ok(ExitStatus::from_raw(9)), None, true, &[]), VmExit::Killed);
        assert_eq!(
            judge(&exited(0), by(false), false, &[]),
            VmExit::Died("it was told to quit (host-signal)".into())
        );
        assert_eq!(
            judge(&exited(1), None, false, &errors),
            VmExit::Died("exit status: 1: no such option".into())
        );
    }
}
