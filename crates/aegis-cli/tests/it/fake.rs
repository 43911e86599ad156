//! A daemon that answers as told, and a way to run `aegis` against it.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread;
use std::time::Duration;

use aegis_api::{ExecDone, ExecStarted, ProcessOutput, STREAMS};
use aegis_types::ProcessInput;
use aegis_types::frame::FrameDecoder;
use tempfile::TempDir;

/// Far more than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// An answer of the daemon.
#[derive(Clone)]
pub(crate) enum Reply {
    /// A whole body.
    Json(u16, String),
    /// A whole body, once [`Fake::release`] was called.
    JsonWhenReleased(u16, String),
    /// NDJSON lines and a proper end.
    Lines(Vec<String>),
    /// NDJSON lines; the end comes when the instance is deleted.
    LinesUntilDeleted(Vec<String>),
    /// NDJSON lines, then a broken connection.
    LinesThenCut(Vec<String>),
    /// Streams, whose daemon's end goes there.
    Streams(mpsc::Sender<Peer>),
    /// No answer ever.
    Never,
}

/// The daemon's end of the streams of a process.
pub(crate) struct Peer {
    stream: UnixStream,
    decoder: FrameDecoder,
}

impl Peer {
    pub(crate) fn says(&mut self, output: ProcessOutput) {
        self.stream.write_all(&output.into_frame().encode().unwrap()).unwrap();
    }

    pub(crate) fn starts(&mut self) {
        let started_at = "2026-01-01T00:00:00Z".parse().unwrap();
        self.says(ProcessOutput::Started(ExecStarted { exec_id: "e1".into(), started_at }));
    }

    pub(crate) fn ends(&mut self, exit_code: u8, error: Option<&str>) {
        let error = error.map(str::to_owned);
        self.says(ProcessOutput::Done(ExecDone { exec_id: "e1".into(), exit_code, done: true, error }));
    }

    /// Ends the streams after these bytes.
    pub(crate) fn breaks(mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// What comes next, or `None` at the end.
    pub(crate) fn hears(&mut self) -> Option<ProcessInput> {
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(ProcessInput::from_frame(frame).unwrap());
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                // The client left while something was on its way to it.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                length => self.decoder.push(&bytes[..length.unwrap()]),
            }
        }
    }
}

pub(crate) fn ok(json: &str) -> Reply {
    Reply::Json(200, json.to_owned())
}

#[derive(Default)]
struct State {
    routes: HashMap<String, VecDeque<Reply>>,
    requests: Vec<String>,
    deleted: bool,
    released: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A home with a daemon, which is there as long as this.
pub(crate) struct Fake {
    home: TempDir,
    shared: Arc<Shared>,
}

impl Fake {
    /// A daemon that only knows its status.
    pub(crate) fn start() -> Self {
        Self::start_with(&status(4242))
    }

    /// A daemon that says this about itself.
    pub(crate) fn start_with(status: &str) -> Self {
        let fake = Self::absent();
        serve(&fake.home.path().join("aegisd.sock"), fake.shared.clone());
        fake.on("GET /v1/status", ok(status))
    }

    /// A home without a daemon.
    pub(crate) fn absent() -> Self {
        let home = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        Self { home, shared }
    }

    /// Adds an answer for `METHOD PATH`, without query. Several are given in order, the last one again and again.
    pub(crate) fn on(self, request: &str, reply: Reply) -> Self {
        self.shared.state.lock().unwrap().routes.entry(request.to_owned()).or_default().push_back(reply);
        self
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Every request so far but questions about the status: method, path and body.
    pub(crate) fn requests(&self) -> Vec<String> {
        let state = self.shared.state.lock().unwrap();
        state.requests.iter().filter(|request| !request.starts_with("GET /v1/status")).cloned().collect()
    }

    /// Waits until a request that starts like this has come.
    pub(crate) fn wait_for(&self, start: &str) {
        let state = self.shared.state.lock().unwrap();
        let seen = |state: &mut State| !state.requests.iter().any(|request| request.starts_with(start));
        let (_state, timeout) = self.shared.changed.wait_timeout_while(state, DEADLINE, seen).unwrap();
        assert!(!timeout.timed_out(), "no request {start}");
    }

    /// Lets held answers go.
    pub(crate) fn release(&self) {
        self.shared.state.lock().unwrap().released = true;
        self.shared.changed.notify_all();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        // Tests may run under `nohup` or in the background of a script, whose ignored signals would be inherited.
        self.command_with_signals("--default-signal", args)
    }

    /// `aegis` with its signals prepared by this option of `env`.
    pub(crate) fn command_with_signals(&self, option: &str, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/env");
        command.arg(option).arg(env!("CARGO_BIN_EXE_aegis")).args(args);
        command.env_clear().env("AEGIS_HOME", self.home()).stdin(Stdio::null());
        command
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        spawn(&mut self.command(args))
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        finish(self.spawn(args))
    }

    /// Exit code and both outputs as a text for snapshots.
    pub(crate) fn aegis(&self, args: &[&str]) -> String {
        self.render(&self.output(args))
    }

    pub(crate) fn render(&self, output: &Output) -> String {
        let text = format!(
            "exit: {}\n{}{}",
            output.status.code().map_or("none".to_owned(), |code| code.to_string()),
            section("stdout", &output.stdout),
            section("stderr", &output.stderr)
        );
        let text = text.replace(self.home().to_str().unwrap(), "[HOME]");
        text.replace(env!("CARGO_PKG_VERSION"), "[VERSION]")
    }
}

fn section(name: &str, text: &[u8]) -> String {
    if text.is_empty() { String::new() } else { format!("--- {name}\n{}", String::from_utf8_lossy(text)) }
}

/// No process is started while a program is being written: a child would hold the file open for writing until it
/// has become another program, and meanwhile nobody could execute it.
static PROGRAMS: RwLock<()> = RwLock::new(());

/// Starts a process with its outputs as pipes.
pub(crate) fn spawn(command: &mut Command) -> Child {
    spawn_plain(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// Starts a process as it is.
pub(crate) fn spawn_plain(command: &mut Command) -> Child {
    let _guard = PROGRAMS.read().unwrap();
    command.spawn().unwrap()
}

/// Starts a process and waits for its end.
pub(crate) fn output(command: &mut Command) -> Output {
    finish(spawn(command))
}

/// Waits for the end of a process, which is killed when it does not come.
pub(crate) fn finish(child: Child) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(DEADLINE) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            panic!("aegis does not end");
        }
    }
}

pub(crate) fn status(pid: u32) -> String {
    format!(
        r#"{{"status":"running","version":"{}","pid":{pid},"backend":"qemu","capabilities":{{"pause_resume":true,
        "persistent_pause":false,"boot_from_disk_layers":true,"network_backend":"none"}},"accelerator":"tcg",
        "accelerator_reason":"there is no /dev/kvm","assets":[],"live_vms":1}}"#,
        env!("CARGO_PKG_VERSION")
    )
}

/// A log line of `inst-1`.
pub(crate) fn entry(source: &str, stream: &str, line: &str) -> String {
    let line = serde_json::to_string(line).unwrap();
    format!(
        r#"{{"ts":"2026-01-01T00:00:00Z","stream":"{stream}","line":{line},"source":"{source}","instance_id":"inst-1"}}"#
    )
}

/// Everything about `inst-1`, with more fields.
pub(crate) fn info(state: &str, more: &str) -> String {
    format!(
        r#"{{"id":"inst-1","state":"{state}","enabled":true,"command":["x"],"image_ref":"base","memory_mb":512,"disk_mb":10240,
        "vcpus":1,"created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z","active_execs":0{more}}}"#
    )
}

/// Serves on a socket until the process ends.
fn serve(socket: &Path, shared: Arc<Shared>) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let shared = shared.clone();
            // A client that leaves early is no failure of the daemon.
            thread::spawn(move || drop(answer(stream.unwrap(), &shared)));
        }
    });
}

/// Serves the status of this process until it is killed.
pub(crate) fn serve_status(home: &Path) -> ! {
    let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
    let reply = ok(&status(std::process::id()));
    shared.state.lock().unwrap().routes.insert("GET /v1/status".to_owned(), [reply].into());
    serve(&home.join("aegisd.sock"), shared);
    // A test that fails does not leave this process behind for ever.
    thread::sleep(DEADLINE * 2);
    panic!("nobody stopped the fake daemon");
}

fn answer(stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut length, mut chunked, mut switches) = (String::new(), 0, false, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        switches |= line.strip_prefix("upgrade: ") == Some(STREAMS);
        chunked |= line == "transfer-encoding: chunked";
        if head.is_empty() {
            head = line.trim_end_matches(" HTTP/1.1").to_owned();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    while chunked && !body.ends_with(b"0\r\n\r\n") {
        reader.read_until(b'\n', &mut body)?;
    }
    let reply = {
        let mut state = shared.state.lock().unwrap();
        state.requests.push(format!("{head} {}", String::from_utf8_lossy(&body)).trim_end().to_owned());
        state.deleted |= head.starts_with("DELETE ");
        shared.changed.notify_all();
        let replies = state.routes.get_mut(head.split('?').next().unwrap());
        match replies {
            Some(replies) if replies.len() > 1 => replies.pop_front().unwrap(),
            Some(replies) => replies.front().unwrap().clone(),
            None => Reply::Json(404, r#"{"error":"no such thing","code":"instance_not_found"}"#.to_owned()),
        }
    };
    if let Reply::Streams(_) = reply
        && !switches
    {
        return send(
            stream,
            Reply::Json(400, r#"{"error":"no streams","code":"invalid_request"}"#.into()),
            shared,
        );
    }
    send(stream, reply, shared)
}

fn send(mut stream: UnixStream, reply: Reply, shared: &Shared) -> std::io::Result<()> {
    let (lines, until_deleted, proper_end) = match reply {
        Reply::Json(code, body) => {
            return write!(stream, "HTTP/1.1 {code} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
        Reply::JsonWhenReleased(code, body) => {
            let state = shared.state.lock().unwrap();
            drop(shared.changed.wait_timeout_while(state, DEADLINE, |state| !state.released).unwrap());
            return send(stream, Reply::Json(code, body), shared);
        }
        Reply::Streams(peers) => {
            write!(stream, "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: {STREAMS}\r\n\r\n")?;
            // A test that has ended does not want it any more.
            drop(peers.send(Peer { stream, decoder: FrameDecoder::default() }));
            return Ok(());
        }
        Reply::Never => {
            // Until the client leaves.
            return stream.read_to_end(&mut Vec::new()).map(drop);
        }
        Reply::Lines(lines) => (lines, false, true),
        Reply::LinesUntilDeleted(lines) => (lines, true, true),
        Reply::LinesThenCut(lines) => (lines, false, false),
    };
    write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
    for line in lines {
        write!(stream, "{:x}\r\n{line}\n\r\n", line.len() + 1)?;
    }
    if until_deleted {
        let state = shared.state.lock().unwrap();
        drop(shared.changed.wait_timeout_while(state, DEADLINE, |state| !state.deleted).unwrap());
    }
    if proper_end { write!(stream, "0\r\n\r\n") } else { Ok(()) }
}

/// An executable script.
pub(crate) fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join(name);
    let _guard = PROGRAMS.write().unwrap();
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
