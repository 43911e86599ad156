//! A terminal, with the test in the place of the keyboard and the screen.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OutputModes, Winsize, tcgetattr, tcsetwinsize};

use crate::PATIENCE;

/// A terminal. It is gone when this is dropped, and programs in it are hung up.
pub struct Pty {
    keys: File,
    /// The end that programs have, held so that the terminal outlives them.
    line: File,
    screen: Arc<Screen>,
    reader: Option<JoinHandle<()>>,
    /// Closing it ends the reader.
    stop: Option<PipeWriter>,
}

impl Pty {
    /// A terminal of this size.
    pub fn new(rows: u16, cols: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let flags = i32::try_from(OFlags::NOCTTY.bits()).unwrap();
        let line = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap();
        let keys = File::from(master);
        let screen = Arc::new(Screen::default());
        let (stopped, stop) = std::io::pipe().unwrap();
        let (source, shown) = (keys.try_clone().unwrap(), screen.clone());
        let reader = thread::spawn(move || shown.fill(source, &stopped));
        let pty = Self { keys, line, screen, reader: Some(reader), stop: Some(stop) };
        pty.resize(rows, cols);
        pty
    }

    /// Gives it another size, of which its programs are told.
    pub fn resize(&self, rows: u16, cols: u16) {
        tcsetwinsize(&self.keys, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    /// Types something.
    pub fn types(&self, keys: &[u8]) {
        (&self.keys).write_all(keys).unwrap();
    }

    /// Waits until this was written to the screen, and forgets what was written until then.
    #[track_caller]
    pub fn shows(&self, text: &[u8]) {
        let position = |bytes: &[u8]| bytes.windows(text.len()).position(|window| window == text);
        let bytes = self.screen.bytes.lock().unwrap();
        let missing = |bytes: &mut Vec<u8>| position(bytes).is_none();
        let (mut bytes, timeout) = self.screen.changed.wait_timeout_while(bytes, PATIENCE, missing).unwrap();
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!timeout.timed_out(), "not shown: {:?}\nbut: {shown:?}", String::from_utf8_lossy(text));
        let end = position(&bytes).unwrap() + text.len();
        bytes.drain(..end);
    }

    /// Neither echoes nor edits nor makes signals of keys, and does not change what is written.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.line).unwrap();
        let line = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG | LocalModes::IEXTEN;
        !modes.local_modes.intersects(line) && !modes.output_modes.contains(OutputModes::OPOST)
    }

    /// Everything about its modes, to compare.
    pub fn modes(&self) -> String {
        format!("{:?}", tcgetattr(&self.line).unwrap())
    }

    /// A program and its arguments, in a session of its own that has this terminal.
    pub fn command(&self, inner: &Command) -> Command {
        let mut command = self.command_with_input(inner);
        command.stdout(self.end()).stderr(self.end());
        command
    }

    /// The same, but only its input is the terminal.
    pub fn command_with_input(&self, inner: &Command) -> Command {
        let mut command = Command::new("/usr/bin/setsid");
        command.arg("--ctty").arg(inner.get_program()).args(inner.get_args()).stdin(self.end());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    fn end(&self) -> Stdio {
        Stdio::from(OwnedFd::from(self.line.try_clone().unwrap()))
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // The terminal is there as long as the reader is.
        drop(self.stop.take());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[derive(Default)]
struct Screen {
    bytes: Mutex<Vec<u8>>,
    changed: Condvar,
}

impl Screen {
    fn fill(&self, mut source: File, stopped: &PipeReader) {
        loop {
            let mut ready = [PollFd::new(&source, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
            poll(&mut ready, None).unwrap();
            if !ready[1].revents().is_empty() {
                return;
            }
            let mut piece = [0; 4096];
            let length = source.read(&mut piece).unwrap();
            self.bytes.lock().unwrap().extend_from_slice(&piece[..length]);
            self.changed.notify_all();
        }
    }
}
