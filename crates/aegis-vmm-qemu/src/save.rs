//! Saving a VM, which QEMU knows as a migration: with `x-ignore-shared` it leaves out the memory that is a file
//! anyway, and what remains are a few dozen kilobytes of device state.
//!
//! It is sent to a socket of ours instead of a file, because then we see how much comes and whether it can be
//! written. The CPUs are not halted first: a VM that was saved while halted would be halted when it is restored.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aegis_vmm::{SavedState, VmmError};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::directory::Directory;
use crate::machine::{Observed, becomes};
use crate::qmp::Client;

/// Socket that QEMU sends the state to, in the runtime directory, while it does.
const SOCKET: &str = "save.sock";
/// From the first command to the end: the disks are flushed on the way, which a busy host may delay.
const DEADLINE: Duration = Duration::from_secs(20);
/// For a VM whose saving failed to run again.
const GO_ON_DEADLINE: Duration = Duration::from_secs(10);
const GO_ON_POLL: Duration = Duration::from_millis(10);
/// A state beyond this is none: either the memory is no file, or the VMM has gone mad.
const STATE_MAX: u64 = 64 << 20;
/// Memory bandwidth is no matter of ours; the default is that of a slow network.
const BANDWIDTH: u64 = 10_000_000_000;
const READ_BYTES: usize = 64 * 1024;

/// See [`aegis_vmm::Vm::save`].
pub(crate) async fn save(
    qmp: &Client,
    observed: &watch::Sender<Observed>,
    directory: &Directory,
    state: &Path,
) -> Result<SavedState, VmmError> {
    observed.send_modify(|observed| observed.migration = None);
    let saved = match timeout(DEADLINE, transfer(qmp, observed, directory, state)).await {
        Ok(saved) => saved,
        Err(_) => {
            let timeout_ms = u64::try_from(DEADLINE.as_millis()).expect("a small constant");
            Err(VmmError::Timeout { command: "migrate".to_owned(), timeout_ms })
        }
    };
    if saved.is_err() {
        go_on(qmp, observed).await;
    }
    saved
}

async fn transfer(
    qmp: &Client,
    observed: &watch::Sender<Observed>,
    directory: &Directory,
    state: &Path,
) -> Result<SavedState, VmmError> {
    let io = |what: &'static str| move |source| VmmError::Io { context: format!("cannot {what}"), source };
    let socket = Removed(directory.reach(SOCKET));
    let listener = directory.listen(SOCKET).map_err(io("make the socket for the saved state"))?;
    listener.set_nonblocking(true).map_err(io("make the socket for the saved state"))?;
    let listener = UnixListener::from_std(listener).map_err(io("make the socket for the saved state"))?;
    let fresh = Removed(with_suffix(state, ".new"));
    let file = create(&fresh.0).map_err(io("create the file of the saved state"))?;

    let received = async {
        let (stream, _) = listener.accept().await.map_err(io("receive the saved state"))?;
        receive(stream, file).await
    };
    let (saved, ()) = tokio::try_join!(received, migrate(qmp, observed, &socket.0))?;
    let saved = saved.map_err(io("write the saved state"))?;
    fs::rename(&fresh.0, state).map_err(io("keep the saved state"))?;
    Ok(saved)
}

/// Makes QEMU send its state to a socket, and waits until it says that it did.
async fn migrate(qmp: &Client, observed: &watch::Sender<Observed>, socket: &Path) -> Result<(), VmmError> {
    let on = |capability: &str| json!({"capability": capability, "state": true});
    tokio::try_join!(
        qmp.execute_with(
            "migrate-set-capabilities",
            json!({"capabilities": [on("x-ignore-shared"), on("events")]}),
        ),
        qmp.execute_with("migrate-set-parameters", json!({"max-bandwidth": BANDWIDTH})),
        qmp.execute_with("migrate", json!({"uri": format!("unix:{}", socket.display())})),
    )?;
    let status = ended(observed).await;
    if status == "completed" {
        return Ok(());
    }
    let info = qmp.query("query-migrate").await?;
    let message =
        info["error-desc"].as_str().map_or_else(|| format!("it ended as `{status}`"), str::to_owned);
    Err(VmmError::Refused { command: "migrate".to_owned(), message })
}

/// Waits for the end of a migration.
async fn ended(observed: &watch::Sender<Observed>) -> String {
    let is_end = |status: &str| matches!(status, "completed" | "failed" | "cancelled");
    let mut end = observed.subscribe();
    becomes(&mut end, |observed| observed.migration.as_deref().is_some_and(is_end)).await;
    let end = end.borrow();
    end.migration.clone().unwrap_or_default()
}

/// Reads all that comes. What cannot be written is read nevertheless: QEMU (7.2) may run on without its disks when it
/// cannot get rid of the last of its state, and then dies of the next thing that the guest writes.
async fn receive<R: AsyncRead + Unpin>(
    mut stream: R,
    mut file: File,
) -> Result<io::Result<SavedState>, VmmError> {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; READ_BYTES];
    let mut written = Ok(());
    loop {
        let read = stream.read(&mut buffer).await;
        let count = read.map_err(|source| VmmError::Io {
            context: "cannot receive the saved state".to_owned(),
            source,
        })?;
        if count == 0 {
            break;
        }
        bytes += count as u64;
        if bytes > STATE_MAX {
            let message = format!("the saved state is larger than {} MiB", STATE_MAX >> 20);
            return Err(VmmError::Refused { command: "migrate".to_owned(), message });
        }
        if written.is_ok() {
            hash.update(&buffer[..count]);
            written = file.write_all(&buffer[..count]);
        }
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(written.map(|()| SavedState { bytes, sha256 }))
}

/// Makes the VM run again after saving it has failed. QEMU does so by itself when it notices; when it had sent
/// everything before we failed, it believes that the VM is elsewhere now.
async fn go_on(qmp: &Client, observed: &watch::Sender<Observed>) {
    let again = async {
        if observed.borrow().migration.is_some() {
            // One that is over is not affected.
            qmp.execute("migrate_cancel").await?;
            ended(observed).await;
        }
        loop {
            // Also to one that runs by itself again: only this surely gives it its disks back. Refused while QEMU is
            // still cleaning up.
            match qmp.execute("cont").await {
                Ok(()) if qmp.query("query-status").await?["running"] == true => return Ok(()),
                Ok(()) | Err(VmmError::Refused { .. }) => sleep(GO_ON_POLL).await,
                Err(e) => return Err(e),
            }
        }
    };
    match timeout(GO_ON_DEADLINE, again).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::warn!("the VM may be halted after it could not be saved: {e}"),
        Err(_) => tracing::warn!("the VM is halted after it could not be saved"),
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A name that does not outlive its purpose.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Gone already when everything went well.
        let _ = fs::remove_file(&self.0);
    }
}
