//! Drives the built programs as a user would: a fresh `AEGIS_HOME`, real VMs, nothing left behind.
//!
//! The programs are those in `$AEGIS_E2E_BIN_DIR`, else in `bin/` of the repository. Each [`Aegis`] has a home of
//! its own, so tests run side by side and never meet the daemon of whoever runs them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

pub mod initramfs;
pub mod net;
mod procs;
pub mod pty;

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub use procs::Process;

/// Longest wait for anything: generous, because the machine may be busy and emulated.
pub const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
/// Lines of each log that the report of a failed test shows.
const LOG_LINES: usize = 40;

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// Exit code; `None` when a signal killed it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails with everything that was said unless the exit code is this one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out(), self.err());
        self
    }

    /// Fails with everything that was said unless it succeeded.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        self.expect_code(0)
    }
}

/// An installation with a home of its own. Dropping it stops the daemon and checks that nothing is left.
pub struct Aegis {
    home: TempDir,
    bin: PathBuf,
    env: Vec<(String, String)>,
}

impl Default for Aegis {
    fn default() -> Self {
        Self::new()
    }
}

impl Aegis {
    /// A fresh home; nothing is started. There are no templates: nothing runs but what a test starts.
    pub fn new() -> Self {
        // Unix socket paths are short, so the home is right below the temporary directory.
        Self::new_in(&std::env::temp_dir())
    }

    /// The same with a home in this directory.
    pub fn new_in(dir: &Path) -> Self {
        let home = tempfile::Builder::new().prefix("aegis-e2e-").tempdir_in(dir).unwrap();
        let bin = match std::env::var_os("AEGIS_E2E_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => {
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bin").canonicalize().unwrap_or_default()
            }
        };
        assert!(bin.join("aegis").exists(), "no programs in `{}`: run `make all` first", bin.display());
        Self { home, bin, env: Vec::new() }
            // Installations side by side cannot have the same port.
            .with_env("AEGIS_ROUTER_ADDR", "127.0.0.1:0")
            .with_env("AEGIS_TEMPLATES", "off")
    }

    /// Makes and uses templates, as users have it.
    pub fn with_templates(self) -> Self {
        self.with_env("AEGIS_TEMPLATES", "auto")
    }

    /// Sets an environment variable for every command of this installation, its daemon included.
    pub fn with_env(mut self, key: &str, value: impl AsRef<Path>) -> Self {
        self.env.push((key.to_owned(), value.as_ref().to_str().unwrap().to_owned()));
        self
    }

    /// The home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Path of a program or, below `../lib/aegis`, of an asset.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Path of a kernel, initramfs or image that came with the programs.
    pub fn asset(&self, name: &str) -> PathBuf {
        self.bin.join("../lib/aegis").join(name)
    }

    /// A program with the environment of this installation.
    pub fn command<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.program(program));
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("AEGIS_") {
                command.env_remove(key);
            }
        }
        command.args(args).env("AEGIS_HOME", self.home()).envs(self.env.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Runs `aegis` with these arguments to its end.
    pub fn aegis<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        finish(self.command("aegis", args))
    }

    /// Starts `aegis` with these arguments; both outputs are pipes.
    pub fn spawn<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Child {
        self.command("aegis", args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// `aegis run -- sh -c SCRIPT`.
    pub fn run_sh(&self, script: &str) -> Output {
        self.aegis(["run", "--", "sh", "-c", script])
    }

    /// Starts an instance that sleeps, and waits until it runs.
    pub fn start_sleeper(&self, name: &str) {
        self.start(name, &["sleep", "100000"]);
    }

    /// Starts an instance and waits until it runs.
    pub fn start(&self, name: &str, command: &[&str]) {
        self.start_with(name, &[], command);
    }

    /// The same with options of `aegis instance start`.
    pub fn start_with(&self, name: &str, options: &[&str], command: &[&str]) {
        self.aegis(["up"]).expect_ok();
        self.launch(name, options, command).expect_ok();
        self.wait_state(name, "running");
    }

    /// `aegis instance start --name NAME OPTIONS -- COMMAND`, which does not wait for the boot.
    pub fn launch(&self, name: &str, options: &[&str], command: &[&str]) -> Output {
        let args = ["instance", "start", "--name", name];
        self.aegis(args.iter().chain(options).chain(&["--"]).chain(command))
    }

    /// `aegis instance ACTION NAME`, which must succeed.
    #[track_caller]
    pub fn instance(&self, action: &str, name: &str) {
        self.aegis(["instance", action, name]).expect_ok();
    }

    /// `aegis exec NAME -- sh -c SCRIPT`.
    pub fn exec_sh(&self, name: &str, script: &str) -> Output {
        self.aegis(["exec", name, "--", "sh", "-c", script])
    }

    /// `aegis instance info NAME --json`.
    pub fn info(&self, name: &str) -> Value {
        let output = self.aegis(["instance", "info", name, "--json"]).expect_ok();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `aegis stats NAME --json`.
    pub fn stats(&self, name: &str) -> Value {
        let output = self.aegis(["stats", name, "--json"]).expect_ok();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Everything in the log of an instance. Lines of the daemon are on the other output.
    pub fn logs(&self, name: &str) -> Output {
        self.aegis(["logs", name]).expect_ok()
    }

    /// The public port of a guest port.
    #[track_caller]
    pub fn port(&self, name: &str, guest: u16) -> u16 {
        let info = self.info(name);
        let endpoints = info["endpoints"].as_array().cloned().unwrap_or_default();
        let found = endpoints.iter().find(|endpoint| endpoint["guest_port"] == guest);
        found.and_then(|endpoint| endpoint["public_port"].as_u64()?.try_into().ok()).expect("it is exposed")
    }

    /// Where the memory of an instance is kept.
    pub fn memory_dir(&self, name: &str) -> PathBuf {
        let id = self.info(name)["id"].as_str().unwrap().to_owned();
        self.home().join("data/instances").join(id).join("memory")
    }

    /// All instances.
    pub fn list(&self) -> Vec<Value> {
        let output = self.aegis(["instance", "list", "--json"]).expect_ok();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until an instance is in this state and returns its info.
    pub fn wait_state(&self, name: &str, state: &str) -> Value {
        wait_for(&format!("`{name}` to be {state}"), || {
            let info = self.info(name);
            assert!(
                state == "stopped" || info["stop_reason"] != "boot_failed",
                "`{name}` did not boot: {info}\n{}",
                self.aegis(["logs", name]).err()
            );
            (info["state"] == state).then_some(info)
        })
    }

    /// Pid of the daemon.
    pub fn daemon_pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.home().join("data/aegisd.pid")).unwrap();
        text.trim().parse().unwrap()
    }

    /// Kills the daemon and waits until it is gone. VMs stay.
    pub fn kill_daemon(&self) {
        self.process("aegisd").kill();
        wait_for("the daemon to die", || {
            self.processes().iter().all(|p| p.program != "aegisd").then_some(())
        });
    }

    /// Live processes that belong to this home: daemon, workers and VMMs.
    pub fn processes(&self) -> Vec<Process> {
        procs::mentioning(self.home())
    }

    /// The live process of this program that belongs to this home.
    #[track_caller]
    pub fn process(&self, program: &str) -> Process {
        let mut found: Vec<_> = self.processes().into_iter().filter(|p| p.program == program).collect();
        assert_eq!(found.len(), 1, "{program}: {:?}", self.processes());
        found.remove(0)
    }

    /// Stops the daemon and checks that no process and no socket of this home is left.
    pub fn down(&self) {
        self.aegis(["down"]).expect_ok();
        wait_for("every process to end", || self.processes().is_empty().then_some(()));
        let sockets = procs::sockets_below(self.home());
        assert!(sockets.is_empty(), "sockets left behind: {sockets:?}");
        let run = std::fs::read_dir(self.home().join("run")).map(|dir| dir.count()).unwrap_or(0);
        assert_eq!(run, 0, "runtime directories left behind");
    }
}

impl Drop for Aegis {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.down();
            return;
        }
        // The test failed already: show what the daemon said, and leave nothing running.
        self.show_logs();
        let _ = finish(self.command("aegis", ["down"]));
        for process in self.processes() {
            process.kill();
        }
    }
}

impl Aegis {
    /// The ends of the daemon's log, of the instances' and of the workers' that are still there.
    #[expect(clippy::print_stderr, reason = "the report of a failed test")]
    fn show_logs(&self) {
        let mut files = vec![self.home().join("data/aegisd.log")];
        for dir in [self.home().join("data/logs"), self.home().join("run")] {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            files.extend(entries.map(|path| if path.is_dir() { path.join("worker.log") } else { path }));
        }
        for file in files {
            let Ok(bytes) = std::fs::read(&file) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("{}:\n{}", file.display(), lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
        }
    }
}

/// Runs a command to its end, with a deadline.
pub fn finish(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_output(child)
}

/// Waits for a child with piped outputs, with a deadline.
pub fn wait_output(mut child: Child) -> Output {
    let stdout = drain(child.stdout.take().unwrap());
    let stderr = drain(child.stderr.take().unwrap());
    let status = wait_exit(&mut child);
    Output { code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for a child, with a deadline.
pub fn wait_exit(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("a command did not end within {PATIENCE:?}");
        }
        thread::sleep(POLL);
    }
}

/// Waits until the probe has a value, with a deadline.
#[track_caller]
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        thread::sleep(POLL);
    }
}
