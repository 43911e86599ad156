//! A running QEMU process: how it is started, and the task that owns it until it is reaped.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aegis_types::VmSpec;
use aegis_vmm::{Carrier, Vm, VmExit, VmmError};
use async_trait::async_trait;
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::args::{self, Fds};
use crate::console::{Log, Tail, pump};
use crate::qmp::{self, QmpError, Shutdown};
use crate::sys;

/// Socket of the guest link in the runtime directory.
const LINK_SOCKET: &str = "link.sock";
/// From the start of the process to its readiness for QMP: it has loaded the kernel by then.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// For what is left in the pipes of a process that has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// A QEMU process. Dropping it kills the process and removes its socket.
pub(crate) struct Machine {
    pid: Option<u32>,
    socket: LinkSocket,
    qmp: qmp::Client,
    console: Tail,
    kill: watch::Sender<bool>,
    exit: watch::Receiver<Option<VmExit>>,
    supervisor: JoinHandle<()>,
}

impl Machine {
    pub(crate) async fn start(spec: &VmSpec, tsc_khz: Option<u64>) -> Result<Self, VmmError> {
        let io =
            |what: &'static str| move |source| VmmError::Io { context: format!("cannot {what}"), source };
        let (socket, listener) = LinkSocket::bind(spec).map_err(io("make the socket of the guest link"))?;
        let (ours, theirs) = StdUnixStream::pair().map_err(io("make the QMP connection"))?;
        ours.set_nonblocking(true).map_err(io("make the QMP connection"))?;
        let ours = UnixStream::from_std(ours).map_err(io("make the QMP connection"))?;
        let log = Log::open(&spec.runtime_dir).map_err(io("open the console log"))?;

        let (listener, theirs) = (OwnedFd::from(listener), OwnedFd::from(theirs));
        let fds = Fds { link: listener.as_raw_fd(), qmp: theirs.as_raw_fd() };
        let mut command = Command::new(&spec.vmm_path);
        command
            .args(args::arguments(spec, fds, tsc_khz))
            // Nothing of our environment is QEMU's business.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        sys::inherit(&mut command, &[&listener, &theirs]);
        let child = command
            .spawn()
            .map_err(|source| VmmError::Spawn { program: spec.vmm_path.display().to_string(), source })?;
        // From here on only QEMU holds them, so that they end with it.
        drop((listener, theirs));

        let pid = child.id();
        let (qmp, connection, ready) = qmp::connect(ours);
        let console = Tail::default();
        let (kill, killed) = watch::channel(false);
        let (exit_tx, exit) = watch::channel(None);
        let process = Process { child, console: console.clone(), log, killed };
        let supervisor = tokio::spawn(async move {
            // Nobody left to tell is no reason to do anything else.
            let _ = exit_tx.send(Some(process.supervise(connection).await));
        });
        let machine = Self { pid, socket, qmp, console, kill, exit, supervisor };
        tokio::select! {
            biased;
            Ok(()) = ready => Ok(machine),
            exit = machine.exited() => Err(VmmError::Ended(describe(exit))),
            () = tokio::time::sleep(START_DEADLINE) => {
                machine.kill();
                machine.exited().await;
                let timeout_ms = u64::try_from(START_DEADLINE.as_millis()).expect("a small constant");
                Err(VmmError::Timeout { command: "the first request".to_owned(), timeout_ms })
            }
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

    async fn connect(&self) -> Result<Box<dyn Carrier>, VmmError> {
        match UnixStream::connect(self.socket.path()).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(source) => {
                Err(VmmError::Io { context: "cannot connect to the guest link".to_owned(), source })
            }
        }
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.qmp.execute("stop").await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.qmp.execute("cont").await
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

/// The path of the link socket, removed with its owner.
struct LinkSocket {
    /// Sockets are reached through this descriptor, because their paths are limited to 108 bytes.
    directory: OwnedFd,
    path: PathBuf,
}

impl LinkSocket {
    fn bind(spec: &VmSpec) -> io::Result<(Self, UnixListener)> {
        let path = spec.runtime_dir.join(LINK_SOCKET);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&spec.runtime_dir, flags, Mode::empty())?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let socket = Self { directory, path };
        let listener = UnixListener::bind(socket.path())?;
        Ok((socket, listener))
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{LINK_SOCKET}", self.directory.as_raw_fd()).into()
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
}

impl Process {
    /// Serves the process until it has ended and was reaped.
    async fn supervise(mut self, connection: qmp::Connection<UnixStream>) -> VmExit {
        let stdout = self.child.stdout.take().expect("piped");
        let stderr = self.child.stderr.take().expect("piped");
        let errors = Tail::default();
        let shutdown: Arc<Mutex<Option<Shutdown>>> = Arc::default();
        let (violation_tx, mut violation) = watch::channel::<Option<String>>(None);

        let qmp = async {
            let record = |s| *shutdown.lock().expect("no panic while held") = Some(s);
            if let Err(e @ QmpError::Violation(_)) = connection.drive(record).await {
                violation_tx.send_replace(Some(e.to_string()));
            }
        };
        let outputs = async {
            tokio::join!(pump(stdout, self.console, Some(self.log)), pump(stderr, errors.clone(), None), qmp)
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
                () = becomes(&mut violation, Option::is_some) => {}
            }
            // Failing means that it has ended by itself.
            let _ = self.child.start_kill();
            break self.child.wait().await;
        };
        if !drained {
            // The pipes end with the process; the deadline is for one that gave them away.
            let _ = tokio::time::timeout(DRAIN_DEADLINE, outputs).await;
        }
        if let Some(violation) = violation.borrow().clone() {
            return VmExit::Died(violation);
        }
        let shutdown = shutdown.lock().expect("no panic while held").take();
        judge(&status, shutdown, *self.killed.borrow(), &errors.lines())
    }
}

/// Waits until a value is as wanted; forever if its sender goes before.
async fn becomes<T>(value: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
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
