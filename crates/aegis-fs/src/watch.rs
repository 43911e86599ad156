//! Changes by others: noticed, compared with what the guest knows, and told to it.
//!
//! ```text
//! inotify ─► (directory, name) ─ a moment ─► look ─► as the guest knows it? nothing
//!                                                  └► otherwise: forget the name, or what is cached of the node
//! ```
//! Changes of the guest's own arrive as well. They need no special treatment, because they have been noted, or will be by
//! whoever is at it, for whom this waits: what is found is what the guest knows. **Invariant:** whoever tells the guest
//! something about a directory watches it first.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::Directory;
use crate::locate::{SHORT, key, path_of, stamp, stat_at, stat_fd};
use crate::session::Listener;
use crate::table::{NodeId, Watch};

/// Changes often come in groups, which are looked at once.
const MOMENT: Duration = Duration::from_millis(10);
/// Watches of one mount, so that a guest cannot use up those of the user: there is one limit for all of them.
pub(crate) const WATCHES_MAX: usize = 16 * 1024;
/// Names that wait to be looked at; with more, everything is looked at.
const PENDING_MAX: usize = 16 * 1024;
/// With nothing to do.
const QUIET: Duration = Duration::from_secs(3600);
const EVENTS_BYTES: usize = 16 * 1024;
/// After a refusal, before another watch is tried.
const RETRY_AFTER: Duration = Duration::from_secs(10);

const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MODIFY)
    // Nothing is reported of what is written through a mapping until its file is closed.
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR);

/// Something that the guest has to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Attributes and content of a node.
    Node(NodeId),
    /// What a name in a directory means.
    Name(NodeId, Box<CStr>),
}

/// See the module.
pub(crate) struct Watcher {
    /// `None` when the user has too many already.
    inotify: Arc<Option<OwnedFd>>,
    /// Watches that it may have.
    limit: usize,
    /// Rung when there is something else to do.
    bell: Arc<Option<OwnedFd>>,
    /// Some directory cannot be watched.
    incomplete: AtomicBool,
    /// There were no watches left; not asked again for a while.
    refused: Mutex<Option<Instant>>,
}

impl Watcher {
    pub(crate) fn new(limit: usize) -> Self {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags)
            .inspect_err(|e| tracing::warn!("changes by others are noticed late: no inotify: {e}"));
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok();
        Self {
            inotify: Arc::new(inotify.ok()),
            limit,
            bell: Arc::new(bell),
            incomplete: AtomicBool::new(false),
            refused: Mutex::default(),
        }
    }

    /// Makes the thread look around.
    pub(crate) fn wake(&self) {
        if let Some(bell) = self.bell.as_ref() {
            // One that rings already cannot be missed.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    pub(crate) fn remove(&self, watch: i32) {
        if let Some(inotify) = self.inotify.as_ref() {
            // The kernel may have removed it with its directory.
            let _ = inotify::remove_watch(inotify, watch);
        }
    }

    fn add(&self, directory: &OwnedFd) -> rustix::io::Result<i32> {
        let mut refused = self.refused.lock().expect("no panic while held");
        if refused.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return Err(Errno::NOSPC);
        }
        let inotify = Option::as_ref(&self.inotify).ok_or(Errno::NOSPC)?;
        let added = inotify::add_watch(inotify, path_of(directory).as_c_str(), CHANGES);
        // Anything else is about this directory: it says nothing of others, and a guest can make as many as it likes.
        if let Err(e @ (Errno::NOSPC | Errno::NOMEM)) = added {
            tracing::info!("some changes by others are noticed late: no watch: {e}");
            *refused = Some(Instant::now());
        }
        added
    }
}

/// Starts the thread, which ends with the directory.
pub(crate) fn start(directory: &Arc<Directory>) -> io::Result<()> {
    let directory = Arc::downgrade(directory);
    thread::Builder::new().name("watch".to_owned()).spawn(move || run(&directory)).map(drop)
}

/// What has to be looked at.
#[derive(Default)]
struct Pending {
    names: HashSet<(NodeId, Box<CStr>)>,
    directories: HashSet<NodeId>,
    everything: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.directories.is_empty() && !self.everything
    }
}

fn run(directory: &Weak<Directory>) {
    let mut pending = Pending::default();
    loop {
        // Not held while waiting, so that the last user's end is the end.
        let Some(found) = directory.upgrade() else { return };
        let wait = match found.watcher.incomplete.load(Ordering::Relaxed) {
            _ if !pending.is_empty() => MOMENT,
            true => SHORT,
            false => QUIET,
        };
        let (inotify, bell) = (Arc::clone(&found.watcher.inotify), Arc::clone(&found.watcher.bell));
        drop(found);
        let changed = wait_for(inotify.as_ref().as_ref(), bell.as_ref().as_ref(), wait);
        if changed && pending.is_empty() {
            // The rest of the group is on its way.
            thread::sleep(MOMENT);
        }
        let Some(found) = directory.upgrade() else { return };
        if let Some(inotify) = inotify.as_ref() {
            found.read_events(inotify, &mut pending);
        }
        if found.can_tell() && found.missed.swap(false, Ordering::Relaxed) {
            pending.everything = true;
        }
        if !changed && found.watcher.incomplete.load(Ordering::Relaxed) {
            found.look_at_unwatched(&mut pending);
        }
        found.look(&mut pending);
    }
}

/// Whether one of them has something before the time is up.
fn wait_for(inotify: Option<&OwnedFd>, bell: Option<&OwnedFd>, wait: Duration) -> bool {
    let mut fds: Vec<PollFd<'_>> =
        [inotify, bell].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(1),
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    if fds.is_empty() {
        thread::sleep(wait);
        return false;
    }
    let ready = poll(&mut fds, Some(&timeout)).unwrap_or(0) > 0;
    if let Some(bell) = bell {
        let _ = rustix::io::read(bell, &mut [0; 8]);
    }
    ready
}

impl Directory {
    /// Has changes of a directory reported, if that is possible.
    pub(crate) fn watch(&self, id: NodeId) {
        {
            let table = self.table();
            let Ok(node) = table.node(id) else { return };
            let retry = node.watch == Watch::Refused;
            if !node.directory || matches!(node.watch, Watch::By(_)) || (retry && !self.may_retry()) {
                return;
            }
        }
        let Ok(fd) = self.directory(id) else { return };
        let full = self.table().by_watch.len() >= self.watcher.limit;
        let added = if full { Err(Errno::NOSPC) } else { self.watcher.add(&fd) };
        let mut table = self.table();
        let watch = match added {
            Ok(watch) => Watch::By(watch),
            Err(_) => {
                self.watcher.incomplete.store(true, Ordering::Relaxed);
                self.watcher.wake();
                Watch::Refused
            }
        };
        if let Ok(node) = table.node_mut(id) {
            node.watch = watch;
        }
        if let Watch::By(watch) = watch {
            table.by_watch.insert(watch, id);
        }
    }

    fn may_retry(&self) -> bool {
        let refused = self.watcher.refused.lock().expect("no panic while held");
        self.watcher.inotify.is_some() && refused.is_none_or(|at| at.elapsed() >= RETRY_AFTER)
    }

    fn read_events(&self, inotify: &OwnedFd, pending: &mut Pending) {
        let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        while let Ok(event) = events.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) || pending.names.len() >= PENDING_MAX {
                pending.everything = true;
                continue;
            }
            let mut table = self.table();
            let Some(&id) = table.by_watch.get(&event.wd()) else { continue };
            if event.events().contains(ReadFlags::IGNORED) {
                table.by_watch.remove(&event.wd());
                if let Ok(node) = table.node_mut(id) {
                    node.watch = Watch::None;
                }
                continue;
            }
            pending.directories.insert(id);
            if let Some(name) = event.file_name() {
                pending.names.insert((id, name.into()));
            }
        }
    }

    /// Directories that cannot be watched are looked at now and then: their listing would be kept for ever.
    fn look_at_unwatched(&self, pending: &mut Pending) {
        let table = self.table();
        let unwatched = table.nodes.iter().filter(|(_, node)| node.watch == Watch::Refused);
        pending.directories.extend(unwatched.map(|(&id, _)| id));
    }

    fn look(&self, pending: &mut Pending) {
        let Pending { mut names, mut directories, everything } = std::mem::take(pending);
        if everything {
            let table = self.table();
            for (&id, node) in &table.nodes {
                if node.directory {
                    directories.insert(id);
                }
                names.extend(node.names.iter().map(|name| (name.parent, name.name.clone())));
            }
            names.extend(table.absent.iter().map(|(directory, name)| (directory, name.into())));
            drop(table);
            // A guest that was saved remembers what was watched then. Before looking: what changes afterwards is reported.
            for &id in &directories {
                self.watch(id);
            }
        }
        for (parent, name) in names {
            if !self.look_at(parent, &name) {
                pending.directories.insert(parent);
                pending.names.insert((parent, name));
            }
        }
        for id in directories {
            let Ok(fd) = self.directory(id) else { continue };
            let Ok(found) = stat_fd(&*fd) else { continue };
            match self.table().node_mut(id) {
                Ok(node) if node.busy > 0 => {
                    pending.directories.insert(id);
                }
                Ok(node) if node.seen != stamp(&found) && self.notify(Notice::Node(id)) => {
                    node.seen = stamp(&found);
                }
                _ => {}
            }
        }
    }

    /// Compares what is there with what the guest knows. False if it is to be tried again.
    fn look_at(&self, parent: NodeId, name: &CStr) -> bool {
        let Ok(directory) = self.directory(parent) else { return true };
        let found = stat_at(&directory, name);
        let mut table = self.table();
        if table.node(parent).is_ok_and(|node| node.busy > 0) {
            return false;
        }
        // What cannot be told is not noted, so that the next look finds it.
        match (table.child(parent, name), found) {
            (Some(id), Ok(found)) if table.node(id).is_ok_and(|node| node.key == key(&found)) => {
                let Ok(node) = table.node_mut(id) else { return true };
                if node.busy > 0 {
                    return false;
                }
                if node.seen != stamp(&found) && self.notify(Notice::Node(id)) {
                    node.seen = stamp(&found);
                }
            }
            (Some(_), Ok(_) | Err(Errno::NOENT)) => {
                if self.notify(Notice::Name(parent, name.into())) {
                    table.unname(parent, name);
                }
            }
            // It may remember that there was nothing.
            (None, Ok(_)) => {
                if self.notify(Notice::Name(parent, name.into())) {
                    table.absent.remove(parent, name);
                }
            }
            (None | Some(_), Err(_)) => {}
        }
        true
    }

    fn can_tell(&self) -> bool {
        let notices = self.notices.lock().expect("no panic while held");
        notices.as_ref().is_some_and(Listener::has_room)
    }

    /// Tells the guest to forget something. Otherwise everything is looked at as soon as it listens: whoever tells notes only
    /// then that the guest knows.
    pub(crate) fn notify(&self, notice: Notice) -> bool {
        let notices = self.notices.lock().expect("no panic while held");
        let sent = notices.as_ref().is_some_and(|listener| listener.tell(notice));
        if !sent {
            self.missed.store(true, Ordering::Relaxed);
        }
        sent
    }
}
