//! Terminals and input of commands, through a real terminal.

use std::io::Write as _;
use std::process::{Child, Stdio};

use aegis_e2e::pty::Pty;
use aegis_e2e::{Aegis, wait_exit, wait_output};

/// `aegis` in a terminal.
struct Session {
    pty: Pty,
    child: Child,
    modes: String,
}

impl Session {
    fn start(aegis: &Aegis, args: &[&str]) -> Self {
        let pty = Pty::new(24, 80);
        let modes = pty.modes();
        let mut command = pty.command(&aegis.command("aegis", args));
        let child = command.env("TERM", "xterm").spawn().unwrap();
        Self { pty, child, modes }
    }

    /// A shell whose prompt has come.
    fn shell(aegis: &Aegis, args: &[&str]) -> Self {
        let session = Self::start(aegis, args);
        // Quotes keep the echo of the line from looking like its output.
        session.pty.types(b"PS1=; echo rea''dy\r");
        session.pty.shows(b"ready\r\n");
        session
    }

    /// Types a line, and waits for what it writes.
    #[track_caller]
    fn line(&self, line: &str, output: &str) {
        self.pty.types(line.as_bytes());
        self.pty.types(b"\r");
        self.pty.shows(output.as_bytes());
    }

    #[track_caller]
    fn ends(mut self, code: i32) -> Pty {
        assert_eq!(wait_exit(&mut self.child).code(), Some(code));
        assert_eq!(self.pty.modes(), self.modes, "the terminal is not as it was");
        self.pty
    }
}

/// A line that says `sleeps` when its command has the terminal, and then sleeps for this many seconds.
///
/// A word of the shell's own would come before its job is in front, where a key that interrupts misses the job.
fn sleep_in_front(seconds: u32) -> String {
    format!("sh -c \"echo sle''eps; exec sleep {seconds}\"")
}

/// `aegis` with this on its standard input; its output and exit code.
fn piped(aegis: &Aegis, args: &[&str], input: Vec<u8>) -> aegis_e2e::Output {
    let mut command = aegis.command("aegis", args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = wait_output(child);
    writer.join().unwrap();
    output
}

#[test]
fn smoke_a_shell_has_the_terminal_and_its_exit_code() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let shell = Session::shell(&aegis, &["shell", "box"]);
    assert!(shell.pty.is_raw());
    shell.line("test -t 0 && test -t 1 && test -t 2 && echo is''-tty", "is-tty\r\n");
    shell.line("echo \"<$TERM>\"", "<xterm>\r\n");
    shell.line("stty size", "24 80\r\n");
    shell.pty.resize(50, 132);
    // The size arrives on its own; the shell is asked until it has.
    shell.line("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo siz''ed", "sized\r\n");
    shell.line(
        "printf '\\033[?1049h\\033[2J\\033[1;1Hfull\\033[?1049l'",
        "\x1b[?1049h\x1b[2J\x1b[1;1Hfull\x1b[?1049l",
    );
    shell.pty.types(b"exit 42\r");
    shell.ends(42);
}

#[test]
fn an_interrupt_ends_the_job_and_the_shell_goes_on() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let shell = Session::shell(&aegis, &["exec", "-it", "box", "--", "sh"]);
    shell.line(&sleep_in_front(100_000), "sleeps\r\n");
    shell.pty.types(b"\x03");
    shell.line("echo goes''-on", "goes-on\r\n");
    // The end of input of a terminal is a key.
    shell.pty.types(b"\x04");
    shell.ends(0);
}

#[test]
fn who_detaches_can_attach_again() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["-it"], &["sh"]);
    let first = Session::shell(&aegis, &["attach", "box"]);
    first.line("kept=yes; echo se''t", "set\r\n");
    first.pty.types(b"\x10\x11");
    first.ends(0).shows(b"Detached from instance `box`");
    let second = Session::shell(&aegis, &["attach", "box"]);
    second.line("echo \"kept: $kept\"", "kept: yes\r\n");
    second.pty.types(b"exit 5\r");
    second.ends(5);
    aegis.wait_state("box", "stopped");
}

#[test]
fn a_terminal_that_goes_away_hangs_an_exec_up() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let shell = Session::shell(&aegis, &["exec", "-it", "box", "--", "sh"]);
    shell.line(&sleep_in_front(54_321), "sleeps\r\n");
    let Session { pty, mut child, .. } = shell;
    drop(pty);
    assert_eq!(wait_exit(&mut child).code(), Some(129));
    let search =
        "while cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep 5432[1]'; do sleep 0.1; done";
    aegis.exec_sh("box", search).expect_ok();
}

#[test]
fn smoke_a_run_with_a_terminal_ends_with_its_command() {
    let aegis = Aegis::new();
    let run = Session::shell(&aegis, &["run", "-it", "--", "sh"]);
    run.line("tty", "/dev/");
    run.pty.types(b"exit 7\r");
    run.ends(7);
    assert!(aegis.list().is_empty());
    // One that is over at once loses nothing.
    let quick = Session::start(&aegis, &["run", "-it", "--", "sh", "-c", "echo quick; exit 3"]);
    quick.pty.shows(b"quick\r\n");
    quick.ends(3);
    assert!(aegis.list().is_empty());
}

#[test]
fn input_comes_through_pipes() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let output = piped(&aegis, &["exec", "-i", "box", "--", "cat"], b"x\n".to_vec()).expect_ok();
    assert_eq!(output.stdout, b"x\n");
    let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = piped(&aegis, &["exec", "-i", "box", "--", "cat"], bytes.clone()).expect_ok();
    assert!(output.stdout == bytes, "{} bytes came back", output.stdout.len());
    let script = "cat; echo err >&2; exit 4";
    let output = piped(&aegis, &["run", "-i", "--", "sh", "-c", script], b"in".to_vec()).expect_code(4);
    assert_eq!((output.out(), output.err()), ("in".to_owned(), "err\n".to_owned()));
    piped(&aegis, &["exec", "-i", "box", "--", "true"], bytes).expect_ok();
}

#[test]
fn commands_run_as_other_users() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let id = |user: &str| {
        let output = aegis.aegis(["exec", "-u", user, "box", "--", "sh", "-c", "id -un; id -g"]).expect_ok();
        output.out().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(id("nobody")[0], "nobody");
    assert_eq!(id("nobody:0"), ["nobody", "0"]);
    let shell = Session::shell(&aegis, &["shell", "-u", "nobody", "box"]);
    shell.line("id -un", "nobody\r\n");
    shell.pty.types(b"exit\r");
    shell.ends(0);
}

#[test]
fn a_shell_wakes_a_sleeping_instance() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    aegis.instance("hibernate", "box");
    let shell = Session::shell(&aegis, &["shell", "box"]);
    shell.pty.types(b"exit\r");
    shell.ends(0);
    aegis.wait_state("box", "running");
}
