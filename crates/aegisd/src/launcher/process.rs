//! Processes that may not be our children: a worker outlives the daemon that started it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Duration;

use aegis_proto::worker::WorkerIdentity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Time between SIGKILL and the end of a process; only a process stuck in the kernel takes longer.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process, safe from the reuse of its pid.
#[derive(Debug)]
pub(super) struct Process {
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process of this pid, which the caller knows to be the right one: its child that was not waited for.
    pub(super) fn of_child(pid: u32) -> io::Result<Process> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ErrorKind::InvalidInput)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe for descriptors that may change; an OwnedFd does not"
        )]
        Ok(Process { fd: AsyncFd::with_interest(fd, Interest::READABLE)? })
    }

    /// The process of this identity, if it still lives.
    pub(super) fn find(identity: &WorkerIdentity) -> io::Result<Option<Process>> {
        // Opened before the check: what the check looked at is then what the descriptor means.
        let process = match Self::of_child(identity.pid) {
            Ok(process) => process,
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => return Ok(None),
            Err(e) => return Err(e),
        };
        match start_ticks(identity.pid) {
            // One that ended and was not waited for still has its entry.
            Ok(ticks) if ticks == identity.start_ticks => Ok((!process.has_exited()?).then_some(process)),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn has_exited(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.fd.get_ref(), PollFlags::IN)];
        Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
    }

    /// Waits until the process has ended. Its exit status may not have been collected.
    pub(super) async fn exited(&self) {
        // A pidfd becomes readable at the end of its process and stays so: the readiness is never cleared.
        if let Err(error) = self.fd.readable().await {
            tracing::error!(%error, "cannot watch a process");
            std::future::pending::<()>().await;
        }
    }

    /// Ends the process by force and waits for its end.
    pub(super) async fn kill(&self) {
        // It may have ended already.
        let _ = pidfd_send_signal(self.fd.get_ref(), Signal::KILL);
        if tokio::time::timeout(KILL_DEADLINE, self.exited()).await.is_err() {
            tracing::error!("a process does not end although it was killed");
        }
    }
}

/// Start time of a process in clock ticks since boot: field 22 of proc_pid_stat(5).
pub(super) fn start_ticks(pid: u32) -> io::Result<u64> {
    let ticks = WorkerIdentity::start_ticks(&fs::read(format!("/proc/{pid}/stat"))?);
    ticks.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "unexpected form of /proc/<pid>/stat"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::process::{Command, Stdio};

    use aegis_types::VmId;

    use super::*;

    #[tokio::test]
    async fn a_process_is_found_by_its_identity_only() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let ticks = start_ticks(child.id()).unwrap();
        let identity = WorkerIdentity { pid: child.id(), start_ticks: ticks, vm_id: VmId::from_random(1) };
        let recycled = WorkerIdentity { start_ticks: ticks - 1, ..identity.clone() };
        assert!(Process::find(&recycled).unwrap().is_none());
        let process = Process::find(&identity).unwrap().unwrap();
        process.kill().await;
        process.exited().await;
        assert!(Process::find(&identity).unwrap().is_none(), "it is a zombie");
        child.wait().unwrap();
        assert!(Process::find(&identity).unwrap().is_none());
    }
}
