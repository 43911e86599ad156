//! Starting and stopping the daemon. Any number of `aegis up` may run at once: one starts, the others see it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use aegis_client::{Client, ClientError};
use aegis_config::{Asset, Home, env, locate};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::error::CliError;

const START_DEADLINE: Duration = Duration::from_secs(15);
/// The daemon gives its VMs time to stop by themselves.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// More for each VM: its memory goes to a disk that may be slow.
const STOP_DEADLINE_PER_VM: Duration = Duration::from_secs(20);
/// How often a process that has no way to tell us is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LOG_LINES: usize = 5;

/// What `up` found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    AlreadyRunning,
    Started,
}

/// Starts the daemon unless it runs. On success it answers requests.
pub(crate) async fn start(home: &Home, client: &Client) -> Result<Start, CliError> {
    if answers(client).await? {
        return Ok(Start::AlreadyRunning);
    }
    let program = locate(Asset::Daemon, None, home)?.path;
    home.ensure()?;
    let _lock = lock(&home.up_lock_file()).await?;
    if answers(client).await? {
        return Ok(Start::AlreadyRunning);
    }
    let log_path = home.daemon_log();
    let log = private_file(&log_path).map_err(|e| cannot_open(&log_path, &e))?;
    let log_start = log.metadata().map_or(0, |meta| meta.len());
    let mut child = spawn(&program, home, log)
        .map_err(|e| CliError::failure(format!("cannot start {}", program.display())).because(&e))?;

    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if matches!(client.status().await, Ok(status) if Some(status.pid) == child.id()) {
            return Ok(Start::Started);
        }
        let exited = child.try_wait().map_err(|e| CliError::failure("cannot wait for aegisd").because(&e))?;
        let hint = format!("its log is {}", log_path.display());
        if let Some(status) = exited {
            // Somebody else may have started one meanwhile, and ours had to give way.
            if answers(client).await? {
                return Ok(Start::AlreadyRunning);
            }
            let error = CliError::failure(format!("aegisd ended right after its start ({status})"));
            return Err(with_log(error, &log_path, log_start).hint(hint));
        }
        if Instant::now() >= deadline {
            let seconds = START_DEADLINE.as_secs();
            let error = CliError::failure(format!("aegisd does not answer {seconds} s after its start"));
            return Err(with_log(error, &log_path, log_start).hint(hint));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Whether a daemon answers. A socket that we may not use is an error.
async fn answers(client: &Client) -> Result<bool, CliError> {
    match client.status().await {
        Ok(_) | Err(ClientError::Api { .. }) => Ok(true),
        Err(error @ ClientError::Connect { .. }) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

fn spawn(program: &Path, home: &Home, log: File) -> io::Result<Child> {
    Command::new(program)
        .arg("--log-file")
        .arg(home.daemon_log())
        .env(env::HOME, home.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Signals of the terminal go to the group in its foreground, which the daemon must not be in.
        .process_group(0)
        .spawn()
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

fn cannot_open(path: &Path, error: &io::Error) -> CliError {
    CliError::failure(format!("cannot open {}", path.display())).because(error)
}

/// Holds the lock until the file is dropped.
async fn lock(path: &Path) -> Result<File, CliError> {
    let file = private_file(path).map_err(|e| cannot_open(path, &e))?;
    // The holder gives up after its own deadline.
    let deadline = Instant::now() + START_DEADLINE + Duration::from_secs(5);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(cannot_open(path, &e)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(CliError::failure("another `aegis up` does not come to an end")
                    .cause(format!("it holds a lock on {}", path.display())));
            }
            Err(TryLockError::WouldBlock) => sleep(LOOK_AGAIN).await,
        }
    }
}

/// Adds the last lines that the daemon wrote since `start`.
fn with_log(error: CliError, path: &Path, start: u64) -> CliError {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(start))?;
        file.take(1 << 20).read_to_end(&mut text)
    });
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    match read {
        Ok(_) if !lines.is_empty() => error.cause(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")),
        _ => error,
    }
}

/// What `down` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Running {
    /// A live daemon, and how many VMs it says it has.
    Yes { pid: Pid, live_vms: u32 },
    /// None.
    No,
    /// None, and the process id file is of one that did not end in order; the file was removed.
    Stale,
    /// None, and the process id file made no sense; it was removed.
    Invalid,
}

/// Looks for the daemon of this home.
pub(crate) async fn find(home: &Home, client: &Client) -> Result<Running, CliError> {
    // Whoever answers is the daemon; the file may be left over and its number in use by another process.
    if let Ok(status) = client.status().await
        && let Some(pid) = to_pid(status.pid)
    {
        return Ok(Running::Yes { pid, live_vms: status.live_vms });
    }
    let path = home.pid_file();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Running::No),
        Err(e) => return Err(cannot_open(&path, &e)),
    };
    let found = match text.trim().parse().ok().and_then(to_pid) {
        Some(pid) if is_alive(pid) && is_daemon(pid) => {
            return Ok(Running::Yes { pid, live_vms: 0 });
        }
        Some(_) => Running::Stale,
        None => Running::Invalid,
    };
    remove_pid_file(&path)?;
    Ok(found)
}

fn to_pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

fn remove_pid_file(path: &Path) -> Result<(), CliError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(CliError::failure(format!("cannot remove {}", path.display())).because(&e))
        }
        _ => Ok(()),
    }
}

/// Asks the daemon to end.
pub(crate) fn terminate(pid: Pid) -> Result<(), CliError> {
    match kill_process(pid, Signal::TERM) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(CliError::failure(format!("cannot stop aegisd (pid {pid})"))
            .because(&io::Error::from(e))
            .hint("it belongs to another user: stop it as that user")),
    }
}

/// Waits until the daemon is gone. One that its parent has not collected yet is gone.
pub(crate) async fn wait_until_gone(home: &Home, pid: Pid, live_vms: u32) -> Result<(), CliError> {
    let limit = STOP_DEADLINE + STOP_DEADLINE_PER_VM * live_vms;
    let deadline = Instant::now() + limit;
    while is_alive(pid) {
        if Instant::now() >= deadline {
            let seconds = limit.as_secs();
            return Err(CliError::failure(format!("aegisd (pid {pid}) still runs after {seconds} s"))
                .hint(format!("its log is {}", home.daemon_log().display()))
                .hint(format!(
                    "`kill -9 {pid}` ends it at once; its VMs go on until the next `aegis down`"
                )));
        }
        sleep(LOOK_AGAIN).await;
    }
    remove_stale(home, pid)
}

/// A daemon that was started meanwhile keeps its file.
fn remove_stale(home: &Home, pid: Pid) -> Result<(), CliError> {
    let path = home.pid_file();
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim() == pid.to_string() => remove_pid_file(&path),
        _ => Ok(()),
    }
}

/// Not being allowed to signal a process means that it exists.
fn is_alive(pid: Pid) -> bool {
    !matches!(test_kill_process(pid), Err(Errno::SRCH)) && !is_zombie(pid)
}

fn is_zombie(pid: Pid) -> bool {
    // The state follows the name, which is in parentheses and may contain anything.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Where the system does not say what a process is called, the number has to do.
fn is_daemon(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or(true, |name| name.trim_end() == Asset::Daemon.file_name())
}
