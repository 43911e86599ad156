//! Starting a worker: its files, its sockets, its process. Everything here blocks.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use aegis_proto::worker::{
    CONFIG_FILE, CONTROL_FD, CONTROL_SOCKET, STREAMS_FD, STREAMS_SOCKET, TEMPLATE_FD, WorkerConfig,
};
use command_fds::{CommandFdExt as _, FdMapping};

use super::files;
use crate::socket;

/// Name of the file with what a worker prints, in the runtime directory.
pub(super) const WORKER_LOG: &str = "worker.log";

/// Could not be started; the text says what was attempted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub(super) struct SpawnError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpawnError + use<> {
    let path = path.to_owned();
    move |source| SpawnError { action, path, source }
}

/// Makes the runtime directory of `config` and starts `worker` in it, with the sealed memory of a template if it is to
/// have one. The directory of an earlier VM is replaced: the
/// caller knows that it is gone.
pub(super) fn spawn(
    worker: &Path,
    config: &WorkerConfig,
    memory: Option<&File>,
) -> Result<Child, SpawnError> {
    let dir = &config.vm.runtime_dir;
    files::make_empty_dir(dir).map_err(failed("create", dir))?;
    let listen = |name| {
        let path = dir.join(name);
        socket::bind(&path).map(OwnedFd::from).map_err(failed("listen on", &path))
    };
    let (control, streams) = (listen(CONTROL_SOCKET)?, listen(STREAMS_SOCKET)?);
    let config_path = dir.join(CONFIG_FILE);
    let text = serde_json::to_vec(config).expect("a configuration serialises");
    files::write_atomically(&config_path, &text).map_err(failed("write", &config_path))?;
    let log_path = dir.join(WORKER_LOG);
    let log = File::options().append(true).create(true).mode(0o600).open(&log_path);
    let log = log.and_then(|log| Ok((log.try_clone()?, log))).map_err(failed("create", &log_path))?;

    let mut descriptors = vec![
        FdMapping { parent_fd: control, child_fd: CONTROL_FD },
        FdMapping { parent_fd: streams, child_fd: STREAMS_FD },
    ];
    if let Some(memory) = memory {
        let parent_fd = memory.try_clone().map_err(failed("pass memory to", worker))?.into();
        descriptors.push(FdMapping { parent_fd, child_fd: TEMPLATE_FD });
    }
    let mut command = Command::new(worker);
    command
        .arg(&config_path)
        // A worker needs no variable, and a guest that took it over must not find the user's there.
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.0)
        .stderr(log.1);
    command.fd_mappings(descriptors).map_err(|e| failed("pass sockets to", worker)(io::Error::other(e)))?;
    command.spawn().map_err(failed("start", worker))
}
