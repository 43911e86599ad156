//! Processes with streams, in a terminal: its modes are put back whatever happens.

use std::process::{Child, Command};
use std::sync::mpsc;

use aegis_api::ProcessOutput;
use aegis_e2e::pty::Pty;
use aegis_types::{ProcessInput, TerminalSize};
use rustix::process::{Pid, Signal, kill_process};

use crate::fake::{DEADLINE, Fake, Peer, Reply, finish, info, ok, spawn, spawn_plain};

const EXEC: [&str; 5] = ["exec", "-it", "web", "--", "sh"];
const RUN: [&str; 4] = ["run", "-it", "--", "sh"];
const CREATED: &str = r#"{"id":"inst-1","state":"starting","command":["sh"],"image_ref":"base"}"#;

/// A daemon with an instance `web` and one that a run creates, and where it hands over streams.
fn fake() -> (Fake, mpsc::Receiver<Peer>) {
    let (sender, peers) = mpsc::channel();
    let fake = Fake::start()
        .on("GET /v1/instances/web", ok(&info("running", r#","tty":true,"stdin":true"#)))
        .on("POST /v1/instances/web/exec/attach", Reply::Streams(sender.clone()))
        .on("POST /v1/instances/web/attach", Reply::Streams(sender.clone()))
        .on("POST /v1/instances", Reply::Json(201, CREATED.to_owned()))
        .on("POST /v1/instances/inst-1/attach", Reply::Streams(sender))
        .on("DELETE /v1/instances/inst-1", ok(r#"{"status":"deleted"}"#));
    (fake, peers)
}

/// Starts `aegis` in a terminal.
fn spawn_in(pty: &Pty, fake: &Fake, args: &[&str]) -> Child {
    spawn_plain(environment(&mut pty.command(&fake.command(args)), fake))
}

fn environment<'a>(command: &'a mut Command, fake: &Fake) -> &'a mut Command {
    command.env_clear().env("AEGIS_HOME", fake.home()).env("TERM", "xterm-test")
}

/// A command of `aegis` in a terminal, and the process that it has joined.
struct Joined {
    pty: Pty,
    fake: Fake,
    child: Child,
    peer: Peer,
    /// Modes of the terminal before.
    modes: String,
}

impl Joined {
    /// Whatever `aegis` joins has started, and the terminal is raw.
    fn start(args: &[&str]) -> Self {
        let (fake, peers) = fake();
        let pty = Pty::new(24, 80);
        let modes = pty.modes();
        let child = spawn_in(&pty, &fake, args);
        let mut peer = peers.recv_timeout(DEADLINE).unwrap();
        assert!(!pty.is_raw(), "Ctrl-C must work until the process has started");
        peer.starts();
        peer.says(ProcessOutput::Stdout(b"<prompt>".to_vec()));
        pty.shows(b"<prompt>");
        assert!(pty.is_raw());
        Self { pty, fake, child, peer, modes }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of `aegis`.
    #[track_caller]
    fn ends(self, code: i32) -> (Pty, Fake, Peer) {
        let output = finish(self.child);
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(self.pty.modes(), self.modes, "the terminal is not as it was");
        (self.pty, self.fake, self.peer)
    }
}

fn data(bytes: &[u8]) -> Option<ProcessInput> {
    Some(ProcessInput::Data(bytes.to_vec()))
}

#[test]
fn a_process_gets_the_terminal_as_it_is() {
    let mut joined = Joined::start(&EXEC);
    // What a full-screen program writes: nothing is added to its line feeds.
    let screen = b"\x1b[?1049h\x1b[2J\x1b[1;1Hone\ntwo\xff\x1b[?1049l";
    joined.peer.says(ProcessOutput::Stdout(screen.to_vec()));
    joined.pty.shows(screen);
    // Ctrl-C, Ctrl-Z, Ctrl-\ and Ctrl-D are the guest's.
    for key in [b"\x03", b"\x1a", b"\x1c", b"\x04", b"\r"] {
        joined.pty.types(key);
        assert_eq!(joined.peer.hears(), data(key));
    }
    joined.peer.ends(42, None);
    let (_, fake, _) = joined.ends(42);
    let body = r#"{"command":["sh"],"env":{"TERM":"xterm-test"},"stdin":true,"tty":{"rows":24,"cols":80}}"#;
    assert_eq!(fake.requests(), [format!("POST /v1/instances/web/exec/attach {body}")]);
}

#[test]
fn a_new_size_is_told() {
    let mut joined = Joined::start(&EXEC);
    for (rows, cols) in [(50, 132), (1, 1)] {
        joined.pty.resize(rows, cols);
        assert_eq!(joined.peer.hears(), Some(ProcessInput::Resize(TerminalSize { rows, cols })));
    }
    joined.peer.ends(0, None);
    joined.ends(0);
}

#[test]
fn the_detach_keys_leave_the_process_alone() {
    for (args, notice) in [
        (&EXEC[..], "Detached: the command goes on in instance `web`"),
        (&["shell", "web"], "Detached: the command goes on in instance `web`"),
        (&["attach", "web"], "`aegis attach web` attaches again"),
        (&RUN, "`aegis instance delete inst-1` deletes it"),
    ] {
        let mut joined = Joined::start(args);
        joined.pty.types(b"a\x10");
        assert_eq!(joined.peer.hears(), data(b"a"));
        joined.pty.types(b"b");
        assert_eq!(joined.peer.hears(), data(b"\x10b"));
        joined.pty.types(b"\x10");
        joined.pty.types(b"\x11");
        assert_eq!(joined.peer.hears(), Some(ProcessInput::End));
        let (pty, fake, mut peer) = joined.ends(0);
        assert_eq!(peer.hears(), None);
        pty.shows(notice.as_bytes());
        assert!(
            !fake.requests().iter().any(|request| request.starts_with("DELETE")),
            "{:?}",
            fake.requests()
        );
    }
}

#[test]
fn other_detach_keys_can_be_chosen() {
    let mut joined = Joined::start(&["attach", "--detach-keys", "ctrl-],q", "web"]);
    joined.pty.types(b"\x10\x11");
    assert_eq!(joined.peer.hears(), data(b"\x10\x11"));
    joined.pty.types(b"\x1dq");
    assert_eq!(joined.peer.hears(), Some(ProcessInput::End));
    joined.ends(0);
}

#[test]
fn signals_end_us_and_hang_an_exec_up() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129), (Signal::QUIT, 131)] {
        let joined = Joined::start(&EXEC);
        joined.signal(signal);
        let (_, _, mut peer) = joined.ends(code);
        assert_eq!(peer.hears(), None);
    }
}

#[test]
fn signals_leave_what_we_are_attached_to_alone() {
    let joined = Joined::start(&["attach", "web"]);
    joined.signal(Signal::TERM);
    let (_, _, mut peer) = joined.ends(143);
    assert_eq!((peer.hears(), peer.hears()), (Some(ProcessInput::End), None));
}

#[test]
fn signals_delete_the_instance_of_a_run() {
    let joined = Joined::start(&RUN);
    joined.signal(Signal::TERM);
    let (_, fake, _) = joined.ends(143);
    let body = r#"{"command":["sh"],"env":{"TERM":"xterm-test"},"tty":true,"stdin":true,"ephemeral":true}"#;
    assert_eq!(
        fake.requests(),
        [
            format!("POST /v1/instances {body}"),
            r#"POST /v1/instances/inst-1/attach {"size":{"rows":24,"cols":80}}"#.to_owned(),
            "DELETE /v1/instances/inst-1".to_owned(),
        ]
    );
}

#[test]
fn a_run_ends_with_its_command() {
    let mut joined = Joined::start(&RUN);
    joined.peer.ends(3, None);
    let (_, fake, _) = joined.ends(3);
    assert_eq!(fake.requests().last().unwrap(), "DELETE /v1/instances/inst-1");
}

#[test]
fn a_run_ends_when_its_time_is_up() {
    let (fake, peers) = fake();
    let pty = Pty::new(24, 80);
    let modes = pty.modes();
    let child = spawn_in(&pty, &fake, &["run", "-it", "--timeout", "1s", "--", "sh"]);
    // On a busy machine the time may be up before any of this.
    std::thread::spawn(move || {
        let mut peer = peers.recv().unwrap();
        peer.starts();
        while peer.hears().is_some() {}
    });
    assert_eq!(finish(child).status.code(), Some(124));
    assert_eq!(pty.modes(), modes);
    pty.shows(b"the command did not end within 1 s");
    assert_eq!(fake.requests().last().unwrap(), "DELETE /v1/instances/inst-1");
}

#[test]
fn a_daemon_that_breaks_off_gives_the_terminal_back() {
    for garbage in [&b""[..], b"\x83\0\0\0\x05ab", b"\x83\xff\xff\xff\xff", b"\x02\0\0\0\0"] {
        let Joined { pty, fake, child, peer, modes } = Joined::start(&EXEC);
        peer.breaks(garbage);
        assert_eq!(finish(child).status.code(), Some(125));
        assert_eq!(pty.modes(), modes);
        pty.shows(b"lost the command in instance `web`\r\n");
        drop(fake);
    }
}

#[test]
fn an_output_that_nobody_reads_gives_the_terminal_back() {
    let (fake, peers) = fake();
    let pty = Pty::new(30, 90);
    let modes = pty.modes();
    let mut command = pty.command_with_input(&fake.command(&EXEC));
    let mut child = spawn(environment(&mut command, &fake));
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    // The size is that of the input when the output has none.
    assert!(fake.requests()[0].contains(r#""tty":{"rows":30,"cols":90}"#), "{:?}", fake.requests());
    peer.starts();
    pty.types(b"x");
    assert_eq!(peer.hears(), data(b"x"));
    assert!(pty.is_raw());
    drop(child.stdout.take());
    peer.says(ProcessOutput::Stdout(b"out".to_vec()));
    assert_eq!(finish(child).status.code(), Some(141));
    assert_eq!(pty.modes(), modes);
}

#[test]
fn a_terminal_that_is_gone_ends_us() {
    for (args, heard) in [(&EXEC[..], None), (&["attach", "web"], Some(ProcessInput::End))] {
        let Joined { pty, fake, child, mut peer, .. } = Joined::start(args);
        drop(pty);
        assert_eq!(finish(child).status.code(), Some(129));
        assert_eq!((peer.hears(), peer.hears()), (heard, None));
        drop(fake);
    }
}

#[test]
fn interrupts_work_until_the_process_has_started() {
    let (fake, peers) = fake();
    let pty = Pty::new(24, 80);
    let child = spawn_in(&pty, &fake, &EXEC);
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    pty.types(b"\x03");
    assert_eq!(finish(child).status.code(), Some(130));
    assert_eq!(peer.hears(), None);
}

#[test]
fn a_terminal_without_input_keeps_its_keys() {
    let (fake, peers) = fake();
    let pty = Pty::new(24, 80);
    let child = spawn_in(&pty, &fake, &["exec", "-t", "web", "--", "x"]);
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    peer.starts();
    peer.says(ProcessOutput::Stdout(b"<out>".to_vec()));
    pty.shows(b"<out>");
    assert!(!pty.is_raw());
    pty.types(b"\x03");
    assert_eq!(peer.hears(), Some(ProcessInput::Signal(2)));
    peer.ends(130, None);
    assert_eq!(finish(child).status.code(), Some(130));
}
