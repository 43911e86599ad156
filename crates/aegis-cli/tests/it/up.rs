//! `aegis up` and `aegis down`, with this test program as the daemon.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;
use rustix::process::{Pid, Signal, kill_process};

use crate::fake::{Fake, Reply, finish, output, script, serve_status, spawn, status};

/// What `AEGIS_DAEMON` runs in the tests below.
#[test]
#[ignore = "this is the daemon, started by other tests"]
fn daemon_process() {
    let home = std::env::var_os("AEGIS_HOME").expect("started by `aegis up`");
    serve_status(Path::new(&home));
}

/// A home whose daemon is a script.
struct Home {
    fake: Fake,
    /// Counts starts: one line each, the process id.
    starts: std::path::PathBuf,
}

impl Home {
    fn with_daemon() -> Self {
        let exe = std::env::current_exe().unwrap();
        Self::with_script(&format!("exec '{}' --exact up::daemon_process --ignored", exe.display()))
    }

    fn with_script(text: &str) -> Self {
        let fake = Fake::absent();
        let starts = fake.home().join("starts");
        script(fake.home(), "daemon", &format!("echo $$ >> '{}'\n{text}", starts.display()));
        Self { fake, starts }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.fake.command(args);
        command.env("AEGIS_DAEMON", self.fake.home().join("daemon")).env("PATH", "/usr/bin:/bin");
        command
    }

    fn aegis(&self, args: &[&str]) -> String {
        self.fake.render(&output(&mut self.command(args)))
    }

    fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(&self.starts).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for pid in self.pids().into_iter().filter_map(Pid::from_raw) {
            // Usually it is gone.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[test]
fn up_starts_once_and_down_stops() {
    let home = Home::with_daemon();
    assert_eq!(home.aegis(&["up"]), "exit: 0\n--- stdout\naegis [VERSION]\naegisd: started\n");
    assert_eq!(home.aegis(&["up"]), "exit: 0\n--- stdout\naegis [VERSION]\naegisd: already running\n");
    let [pid] = home.pids()[..] else { panic!("{:?}", home.pids()) };
    let expected = format!("exit: 0\n--- stdout\naegisd stopping (pid {pid})\naegisd stopped\n");
    assert_eq!(home.aegis(&["down"]), expected);
    assert_eq!(home.aegis(&["down"]), "exit: 0\n--- stdout\naegisd is not running\n");
}

#[test]
fn many_ups_start_one_daemon() {
    let home = Home::with_daemon();
    let all: Vec<_> = (0..6).map(|_| spawn(&mut home.command(&["up"]))).collect();
    for child in all {
        assert_eq!(finish(child).status.code(), Some(0));
    }
    assert_eq!(home.pids().len(), 1);
}

#[test]
fn run_starts_the_daemon() {
    let home = Home::with_daemon();
    // The fake refuses to create anything, which is enough to see that it was asked.
    assert_eq!(home.aegis(&["run", "--", "x"]), "exit: 1\n--- stderr\nerror: no such thing\n");
    assert_eq!(home.pids().len(), 1);
}

#[test]
fn a_daemon_that_ends_at_once_is_reported_with_the_end_of_its_log() {
    let home = Home::with_script("for i in 1 2 3 4 5 6 7; do echo \"line $i\" >&2; done; exit 3");
    fs::create_dir(home.fake.home().join("data")).unwrap();
    fs::write(home.fake.home().join("data/aegisd.log"), "old\n").unwrap();
    assert_snapshot!(home.aegis(&["up"]), @r"
    exit: 1
    --- stdout
    aegis [VERSION]
    --- stderr
    error: aegisd ended right after its start (exit status: 3)
      cause: line 3
             line 4
             line 5
             line 6
             line 7
      hint: its log is [HOME]/data/aegisd.log
    ");
}

#[test]
fn a_missing_daemon_program_is_reported() {
    let fake = Fake::absent();
    let mut command = fake.command(&["up"]);
    let output = output(command.env("AEGIS_DAEMON", "/nonexistent/aegisd"));
    assert_snapshot!(fake.render(&output), @r"
    exit: 1
    --- stdout
    aegis [VERSION]
    --- stderr
    error: the daemon `/nonexistent/aegisd` named by AEGIS_DAEMON is not a program
      hint: it belongs beside `aegis`: `make all` or `make install` puts it there; or name it with AEGIS_DAEMON
    ");
}

#[test]
fn down_clears_what_a_lost_daemon_left() {
    let home = Home::with_script("true");
    let pid_file = home.fake.home().join("data/aegisd.pid");
    fs::create_dir(pid_file.parent().unwrap()).unwrap();
    // Our own process lives and is no daemon: its number was given away again.
    for (text, expected) in [
        ("nonsense", "(invalid pid file)"),
        ("0", "(invalid pid file)"),
        (std::process::id().to_string().as_str(), "(stale pid file)"),
    ] {
        fs::write(&pid_file, text).unwrap();
        let expected = format!("exit: 0\n--- stdout\naegisd is not running {expected}\n");
        assert_eq!(home.aegis(&["down"]), expected);
        assert!(!pid_file.exists());
    }
}

#[test]
fn down_takes_a_zombie_for_stopped() {
    // A daemon that does not answer any more, known by its name, whose parent (we) does not collect it.
    let home = Home::with_script("true");
    let program = home.fake.home().join("aegisd");
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    let mut daemon = spawn(Command::new(&program).arg("120"));
    let pid_file = home.fake.home().join("data/aegisd.pid");
    fs::create_dir(pid_file.parent().unwrap()).unwrap();
    fs::write(&pid_file, format!("{}\n", daemon.id())).unwrap();
    let expected = format!("exit: 0\n--- stdout\naegisd stopping (pid {})\naegisd stopped\n", daemon.id());
    assert_eq!(home.aegis(&["down"]), expected);
    assert!(!pid_file.exists());
    daemon.wait().unwrap();
}

#[test]
fn down_asks_for_a_stop_where_a_signal_would_hibernate() {
    // A daemon that ends when it is asked over its socket: we end it then, and not before.
    let daemon = spawn(Command::new("/bin/sleep").arg("120"));
    let pid = Pid::from_child(&daemon);
    let fake = Fake::start_with(&status(daemon.id()))
        .on("POST /v1/shutdown", Reply::JsonWhenReleased(200, r#"{"status":"stopping"}"#.to_owned()));
    let down = fake.spawn(&["down", "--stop"]);
    fake.wait_for("POST /v1/shutdown");
    assert_eq!(fake.requests(), [r#"POST /v1/shutdown {"mode":"stop"}"#]);
    kill_process(pid, Signal::KILL).unwrap();
    let ended = finish(daemon).status;
    fake.release();
    let expected = format!("exit: 0\n--- stdout\naegisd stopping (pid {pid})\naegisd stopped\n");
    assert_eq!(fake.render(&finish(down)), expected);
    // Our signal came first: `aegis` had sent none.
    assert_eq!(ended.signal(), Some(9));
}

#[test]
fn a_daemon_that_cannot_stop_instances_is_left_alone() {
    let mut daemon = spawn(Command::new("/bin/sleep").arg("120"));
    let refusal =
        r#"{"error":"there is no `POST /v1/shutdown` in this version of aegisd","code":"invalid_request"}"#;
    let fake =
        Fake::start_with(&status(daemon.id())).on("POST /v1/shutdown", Reply::Json(404, refusal.to_owned()));
    assert_snapshot!(fake.aegis(&["down", "--stop"]), @r"
    exit: 1
    --- stderr
    error: there is no `POST /v1/shutdown` in this version of aegisd
    ");
    assert!(daemon.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&daemon), Signal::KILL).unwrap();
    daemon.wait().unwrap();
}
