//! Commands of a test to a VM that lives in a worker process: one line on a socket beside those of the worker.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

const SOCKET: &str = "vmm.sock";

/// What can happen to a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// The VMM dies with these last words.
    Die(String),
    /// The guest switches itself off.
    PowerOff,
    /// The guest closes the link and waits for a new greeting.
    DropLink,
    /// The guest's link carries garbage from now on.
    Garble,
    /// The kernel writes a line to the console.
    Print(String),
}

/// Does things to a VM. Every call returns when it has happened.
#[derive(Debug, Clone)]
pub struct VmRemote(PathBuf);

#[allow(clippy::missing_errors_doc, reason = "said once: the VM is gone")]
impl VmRemote {
    pub(crate) fn new(runtime_dir: &Path) -> Self {
        Self(runtime_dir.join(SOCKET))
    }

    /// Ends the VMM, which leaves these last words.
    pub async fn die(&self, words: &str) -> io::Result<()> {
        self.send(&Command::Die(words.to_owned())).await
    }

    /// Makes the guest switch itself off.
    pub async fn power_off(&self) -> io::Result<()> {
        self.send(&Command::PowerOff).await
    }

    /// Makes the guest close its link; it answers the next greeting.
    pub async fn drop_link(&self) -> io::Result<()> {
        self.send(&Command::DropLink).await
    }

    /// Spoils everything that the guest says from now on.
    pub async fn garble(&self) -> io::Result<()> {
        self.send(&Command::Garble).await
    }

    /// Writes a line to the console.
    pub async fn print(&self, line: &str) -> io::Result<()> {
        self.send(&Command::Print(line.to_owned())).await
    }

    async fn send(&self, command: &Command) -> io::Result<()> {
        let mut stream = UnixStream::connect(&self.0).await?;
        stream.write_all(format!("{}\n", serde_json::to_string(command)?).as_bytes()).await?;
        stream.read_u8().await?;
        Ok(())
    }
}

/// The VM's end.
pub(crate) struct Remote(UnixListener);

impl Remote {
    pub(crate) fn listen(runtime_dir: &Path) -> io::Result<Self> {
        let path = runtime_dir.join(SOCKET);
        // The VM before this one, if the first attempt to boot failed.
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).map(Self)
    }

    /// Performs commands for ever.
    pub(crate) async fn serve(&self, perform: impl Fn(Command)) -> io::Result<()> {
        loop {
            let mut stream = BufReader::new(self.0.accept().await?.0);
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            perform(serde_json::from_str(&line)?);
            stream.write_all(b".").await?;
            // A machine that was ended must not hear what is meant for the next one.
            tokio::task::yield_now().await;
        }
    }
}
