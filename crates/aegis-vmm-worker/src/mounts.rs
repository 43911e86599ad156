//! The thread that serves the directories of the host that the guest has mounted. It is started before this process gives
//! them up, and the VMM after it: only this thread and its own can reach them.

use std::fs;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aegis_fs::Directory;
use aegis_link::LinkError;
use aegis_link::host::HostLink;
use aegis_proto::fuse::NONCE_BYTES;
use aegis_proto::saved::MOUNT_FILE;
use aegis_proto::service::Service;
use aegis_types::Mount;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::boot::message_of;
use crate::content;
use crate::files::{self, Answers, Requests};

/// For sessions to end whose streams have.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// From the end of the link to what came before it.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);
/// Messages that arrive together are taken out of the stream together.
const READ_AHEAD: usize = 64 * 1024;
/// Before another session, and the longest such pause.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

type Reply = oneshot::Sender<Result<(), String>>;

/// What the thread is told.
enum Command {
    /// A guest begins, with what an earlier worker has left in this directory if it was saved.
    Open(Option<PathBuf>, Reply),
    /// The guest is there, and asks on this stream; the one before serves on without one.
    Serve(HostLink, Option<UnixStream>),
    /// The VMM that is being started reads content on this stream.
    ServeContent(UnixStream),
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
            runtime.block_on(
                Server { mounts, open: Vec::new(), files: None, session: JoinSet::new() }.run(received),
            )
        })?;
        Ok(Self { commands })
    }

    /// Gets ready for a guest; the error says what is wrong with which directory.
    pub(crate) async fn open(&self, saved: Option<&Path>) -> Result<(), String> {
        let saved = saved.map(Path::to_owned);
        self.ask(|reply| Command::Open(saved, reply)).await
    }

    /// Serves the guest at the end of this link. The stream is given once for each VM.
    pub(crate) fn serve(&self, link: HostLink, files: Option<UnixStream>) {
        if self.commands.send(Command::Serve(link, files)).is_err() {
            tracing::error!("the thread of the mounts is gone");
        }
    }

    /// Answers the VMM for the content of files, those of the guest for which they were opened last.
    pub(crate) fn serve_content(&self, stream: UnixStream) {
        if self.commands.send(Command::ServeContent(stream)).is_err() {
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
    /// Of the VM that runs.
    files: Option<Arc<Files>>,
    /// One while there is a link.
    session: JoinSet<()>,
}

impl Server {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Open(saved, reply) => {
                    (self.files, _) = (None, self.session.shutdown().await);
                    // Whoever does not wait any more does not want it.
                    let _ = reply.send(self.open(saved.as_deref()));
                }
                Command::Serve(link, files) => {
                    self.session.shutdown().await;
                    if let Some(files) = files {
                        match Files::new(files) {
                            Ok(files) => self.files = Some(Arc::new(files)),
                            Err(error) => tracing::error!(%error, "the guest has no directories"),
                        }
                    }
                    if let Some(files) = &self.files {
                        self.session.spawn(serve(link, Arc::clone(files), self.open.clone()));
                    }
                }
                Command::ServeContent(stream) => content::serve(stream, self.open.clone()),
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
        // A parked guest has taken leave.
        let ended = async { while self.session.join_next().await.is_some() {} };
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

/// The stream on which a guest asks, for all its sessions.
struct Files {
    /// What was read ahead is not lost between sessions.
    reader: Mutex<BufReader<Requests>>,
    writer: Arc<Mutex<Answers>>,
}

impl Files {
    fn new(stream: UnixStream) -> io::Result<Self> {
        let (reader, writer) = files::split(stream)?;
        let reader = Mutex::new(BufReader::with_capacity(READ_AHEAD, reader));
        Ok(Self { reader, writer: Arc::new(Mutex::new(writer)) })
    }
}

/// Why a session ended before the guest took leave.
#[derive(Debug, thiserror::Error)]
enum SessionFailure {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Session(#[from] aegis_fs::SessionError),
    #[error("the guest ended the session")]
    Ended,
    #[error("the host has no random numbers")]
    Random(#[source] getrandom::Error),
}

/// Serves one session after the other as long as there is the link, or until the guest takes leave.
async fn serve(link: HostLink, files: Arc<Files>, directories: Vec<Arc<Directory>>) {
    let mut pause = PAUSE_MIN;
    loop {
        let why = match session(&link, &files, &directories).await {
            Ok(()) => return,
            Err(SessionFailure::Link(LinkError::Refused(_))) => {
                return tracing::warn!("the guest's harness is too old for directories of the host");
            }
            Err(e) => message_of(&e),
        };
        tokio::select! {
            () = sleep(pause) => {}
            // What ended the session.
            _ = link.ended() => return,
        }
        tracing::warn!("serving the guest's directories again: {why}");
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn session(
    link: &HostLink,
    files: &Files,
    directories: &[Arc<Directory>],
) -> Result<(), SessionFailure> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(SessionFailure::Random)?;
    let mut stream = link.open(Service::Fuse).await?;
    stream.write_all(&nonce).await.map_err(LinkError::Io)?;
    stream.flush().await.map_err(LinkError::Io)?;
    let mut reader = files.reader.lock().await;
    let mut served = pin!(aegis_fs::serve(directories, nonce, &mut *reader, &files.writer));
    let served = tokio::select! {
        served = &mut served => served,
        // A guest that is parked took leave before it ended the link, but the two come on different ways.
        _ = stream.read_u8() => match timeout(LEAVE_DEADLINE, served).await {
            Ok(served) => served,
            Err(_) => return Err(SessionFailure::Ended),
        },
    };
    Ok(served?)
}
