//! The thread that serves the directories of the host that the guest has mounted. It is started before this process gives
//! them up, and the VMM after it: only this thread and its own can reach them.

use std::fs;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aegis_fs::Directory;
use aegis_link::LinkError;
use aegis_link::host::HostLink;
use aegis_proto::saved::MOUNT_FILE;
use aegis_proto::service::Service;
use aegis_types::Mount;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::boot::message_of;

/// For sessions to end whose streams have.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Before a stream that ended is opened again, and the longest such pause.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

type Reply = oneshot::Sender<Result<(), String>>;

/// What the thread is told.
enum Command {
    /// A guest begins, with what an earlier worker has left in this directory if it was saved.
    Open(Option<PathBuf>, Reply),
    /// The guest is there.
    Serve(HostLink),
    /// The guest was parked: leave what the next worker needs in this directory.
    Save(PathBuf, Reply),
}

/// The mounts of this worker's VM. Clones are for the same ones, which end with the last of them.
#[derive(Clone)]
pub struct MountThread {
    commands: mpsc::UnboundedSender<Command>,
}

impl MountThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// As for starting threads.
    pub fn start(mounts: Vec<Mount>) -> io::Result<Self> {
        let (commands, received) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("mounts".to_owned()).spawn(move || {
            runtime.block_on(Server { mounts, open: Vec::new(), tasks: JoinSet::new() }.run(received))
        })?;
        Ok(Self { commands })
    }

    /// Gets ready for a guest; the error says what is wrong with which directory.
    pub(crate) async fn open(&self, saved: Option<&Path>) -> Result<(), String> {
        let saved = saved.map(Path::to_owned);
        self.ask(|reply| Command::Open(saved, reply)).await
    }

    /// Serves the guest at the end of this link.
    pub(crate) fn serve(&self, link: HostLink) {
        if self.commands.send(Command::Serve(link)).is_err() {
            tracing::error!("the thread of the mounts is gone");
        }
    }

    /// Leaves in this directory what the next worker needs, once the guest was parked.
    pub(crate) async fn save(&self, directory: &Path) -> Result<(), String> {
        let directory = directory.to_owned();
        self.ask(|reply| Command::Save(directory, reply)).await
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the thread of the mounts is gone".to_owned();
        self.commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// The file for a mount.
pub(crate) fn saved_file(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("{MOUNT_FILE}{number}"))
}

struct Server {
    mounts: Vec<Mount>,
    open: Vec<Arc<Directory>>,
    /// One for each mount while there is a link.
    tasks: JoinSet<()>,
}

impl Server {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Open(saved, reply) => {
                    self.tasks.shutdown().await;
                    // Whoever does not wait any more does not want it.
                    let _ = reply.send(self.open(saved.as_deref()));
                }
                Command::Serve(link) => {
                    self.tasks.shutdown().await;
                    for (number, directory) in (0..).zip(&self.open) {
                        let target = self.mounts[usize::from(number)].guest.to_string();
                        self.tasks.spawn(serve(link.clone(), number, target, Arc::clone(directory)));
                    }
                }
                Command::Save(directory, reply) => {
                    let _ = reply.send(self.save(&directory).await);
                }
            }
        }
    }

    fn open(&mut self, saved: Option<&Path>) -> Result<(), String> {
        self.open.clear();
        for (number, mount) in self.mounts.iter().enumerate() {
            let opened = match saved {
                None => Directory::open(&mount.host, mount.read_only).map_err(|e| e.to_string()),
                Some(saved) => {
                    let tables = fs::read(saved_file(saved, number)).map_err(|e| e.to_string());
                    tables.and_then(|tables| {
                        let opened = Directory::reopen(&mount.host, mount.read_only, &tables);
                        opened.map_err(|e| message_of(&e))
                    })
                }
            };
            let opened = opened
                .map_err(|why| format!("cannot serve {} as {}: {why}", mount.host.display(), mount.guest))?;
            self.open.push(opened);
        }
        Ok(())
    }

    async fn save(&mut self, directory: &Path) -> Result<(), String> {
        // Their streams have ended with the link, and a parked guest has asked for nothing more.
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(END_DEADLINE, ended).await.is_err() {
            return Err("requests of the guest to mounted directories do not end".to_owned());
        }
        for (number, open) in self.open.iter().enumerate() {
            let tables = open.save().map_err(|e| message_of(&e))?;
            let path = saved_file(directory, number);
            write(&path, &tables).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

/// Serves one mount as long as there is the link: a stream that ends before it is opened again.
async fn serve(link: HostLink, number: u16, target: String, directory: Arc<Directory>) {
    let mut pause = PAUSE_MIN;
    loop {
        let served = async {
            let mut stream = link.open(Service::Fuse).await?;
            stream.write_all(&number.to_be_bytes()).await?;
            stream.flush().await?;
            Ok::<_, LinkError>(aegis_fs::serve(&directory, stream).await)
        };
        let why = tokio::select! {
            served = served => match served {
                Ok(Ok(())) => "the guest closed the stream".to_owned(),
                Ok(Err(e)) => message_of(&e),
                Err(LinkError::Refused(_)) => {
                    return tracing::warn!(target, "the guest's harness is too old to mount directories of the host");
                }
                Err(e) => message_of(&e),
            },
            _ = link.ended() => return,
        };
        tokio::select! {
            () = sleep(pause) => {}
            // What ended the stream.
            _ = link.ended() => return,
        }
        tracing::warn!(target, "serving a directory again: {why}");
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
