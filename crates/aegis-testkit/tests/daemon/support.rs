//! A home, its daemon and a client, in words that read well in tests.

use std::future::Future;
use std::time::Duration;

use aegis_api::{
    CreateInstance, ErrorCode, ExecDone, ExecRequest, InstanceInfo, LogEntry, LogSource, LogStream,
};
use aegis_client::{Client, ClientError, Creation, ExecEvent, ExecEvents, LogEntries, LogQuery};
use aegis_testkit::{TestDaemon, TestHome};
use aegis_types::{Handle, InstanceId, InstanceState};
use aegisd::{DaemonOptions, LockError, StartError};

/// Far above what anything here takes.
const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at the state of an instance.
const POLL: Duration = Duration::from_millis(2);

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("the deadline of tests is generous")
}

pub(crate) fn new_home() -> TestHome {
    TestHome::new(env!("CARGO_BIN_EXE_aegis-fake-worker"))
}

pub(crate) struct Host {
    daemon: Option<TestDaemon>,
    pub(crate) client: Client,
    /// Last: it fails the test if something of the above is left.
    pub(crate) home: TestHome,
}

impl Host {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut DaemonOptions)) -> Self {
        let home = new_home();
        let daemon = within(TestDaemon::start_with(&home, change)).await.unwrap();
        Self { client: daemon.client(), daemon: Some(daemon), home }
    }

    /// Kills the daemon.
    pub(crate) async fn crash(&mut self) {
        within(self.daemon.take().unwrap().crash(&self.home)).await;
    }

    /// Starts a daemon again. A program that another test is just starting may have inherited the lock of the last
    /// one, until it is executed.
    pub(crate) async fn up(&mut self) {
        let started = async {
            loop {
                match TestDaemon::start(&self.home).await {
                    Err(StartError::Lock(LockError::Taken { .. })) => tokio::time::sleep(POLL).await,
                    started => return started.unwrap(),
                }
            }
        };
        self.daemon = Some(within(started).await);
    }

    /// Ends the daemon in order.
    pub(crate) async fn down(&mut self) {
        within(self.daemon.take().unwrap().shut_down()).await;
    }

    /// Waits until nothing of this home runs any more. A worker outlives its VM for a moment, because it waits until
    /// the daemon has closed the streams to the guest.
    pub(crate) async fn nothing_runs(&self) {
        within(async {
            while !self.home.processes().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// The end of a test: whatever still runs is stopped, and nothing may be left.
    pub(crate) async fn end(mut self) {
        self.down().await;
        assert!(!self.home.home().socket().exists() && !self.home.home().pid_file().exists());
    }

    /// A request for an instance; its processes are recognised at the end of the test.
    pub(crate) fn instance(&self, handle: &str, command: &[&str]) -> CreateInstance {
        CreateInstance {
            handle: Some(Handle::parse(handle).unwrap()),
            command: words(command),
            env: [self.home.marker()].into(),
            ..CreateInstance::default()
        }
    }

    pub(crate) async fn create(&self, instance: &CreateInstance) -> InstanceId {
        match within(self.client.create(instance)).await.unwrap() {
            Creation::Created(created) => created.id,
            Creation::Restarted(_) => panic!("there was one already"),
        }
    }

    /// Creates an instance that runs a shell script.
    pub(crate) async fn sh(&self, handle: &str, script: &str) -> InstanceId {
        self.create(&self.instance(handle, &["sh", "-c", script])).await
    }

    /// An instance that runs until it is stopped.
    pub(crate) async fn sleeper(&self, handle: &str) -> InstanceId {
        let id = self.create(&self.instance(handle, &["sleep", "100000"])).await;
        self.reach(&id, InstanceState::Running).await;
        id
    }

    pub(crate) async fn info(&self, id: &InstanceId) -> InstanceInfo {
        within(self.client.get(id.as_str())).await.unwrap()
    }

    /// Waits for a state.
    pub(crate) async fn reach(&self, id: &InstanceId, state: InstanceState) -> InstanceInfo {
        let reach = async {
            loop {
                let info = self.client.get(id.as_str()).await.unwrap();
                if info.state == state {
                    return info;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(DEADLINE, reach).await {
            Ok(info) => info,
            Err(_) => {
                let info = self.info(id).await;
                panic!("not {state} but {info:#?}; the worker says:\n{}", self.home.worker_log(id))
            }
        }
    }

    pub(crate) async fn stopped(&self, id: &InstanceId) -> InstanceInfo {
        self.reach(id, InstanceState::Stopped).await
    }

    pub(crate) async fn follow(&self, id: &InstanceId) -> Log {
        let query = LogQuery { follow: true, ..LogQuery::default() };
        Log(within(self.client.logs(id.as_str(), &query)).await.unwrap())
    }

    /// The whole log as it is now.
    pub(crate) async fn log(&self, id: &InstanceId) -> Vec<LogEntry> {
        self.query(id, LogQuery::default()).await
    }

    pub(crate) async fn query(&self, id: &InstanceId, query: LogQuery) -> Vec<LogEntry> {
        Log(within(self.client.logs(id.as_str(), &query)).await.unwrap()).rest().await
    }

    pub(crate) async fn exec(&self, id: &InstanceId, command: &[&str]) -> Outcome {
        self.exec_request(id, &exec(command)).await
    }

    pub(crate) async fn exec_request(&self, id: &InstanceId, request: &ExecRequest) -> Outcome {
        Exec(within(self.client.exec(id.as_str(), request)).await.unwrap()).finish().await
    }

    pub(crate) async fn begin_exec(&self, id: &InstanceId, command: &[&str]) -> Exec {
        Exec(within(self.client.exec(id.as_str(), &exec(command))).await.unwrap())
    }

    /// A command that must be refused.
    pub(crate) async fn exec_refused(&self, id: &InstanceId) -> (u16, ErrorCode) {
        match within(self.client.exec(id.as_str(), &exec(&["true"]))).await {
            Err(error) => refusal(error),
            Ok(_) => panic!("it was not refused"),
        }
    }
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

pub(crate) fn exec(command: &[&str]) -> ExecRequest {
    ExecRequest { command: words(command), ..ExecRequest::default() }
}

pub(crate) fn refusal(error: ClientError) -> (u16, ErrorCode) {
    match error {
        ClientError::Api { status, body } => (status, body.code),
        other => panic!("{other:?}"),
    }
}

/// A log that is being read.
pub(crate) struct Log(LogEntries);

impl Log {
    pub(crate) async fn next(&mut self) -> Option<LogEntry> {
        within(self.0.next()).await.unwrap()
    }

    /// The next so many lines.
    pub(crate) async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let entry = self.next().await.unwrap_or_else(|| panic!("the log ends after {lines:?}"));
            lines.push(entry.line);
        }
        lines
    }

    /// What the command prints next, at least so many whole lines.
    pub(crate) async fn output(&mut self, lines: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut count = 0;
        while count < lines {
            let entry = self.next().await.unwrap_or_else(|| panic!("the log ends after {count} lines"));
            assert_eq!(entry.source, LogSource::Server, "{}", entry.line);
            bytes.extend_from_slice(&entry.bytes());
            count += usize::from(!entry.partial);
        }
        bytes
    }

    /// Everything up to the line that says how the command ended, that one included.
    pub(crate) async fn until_exit(&mut self) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        loop {
            let entry = self.next().await.expect("the exit line comes before the end");
            let last = entry.source == LogSource::System && entry.line.starts_with("process exited (code=");
            entries.push(entry);
            if last {
                return entries;
            }
        }
    }

    /// Everything up to the end.
    pub(crate) async fn rest(mut self) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        while let Some(entry) = self.next().await {
            entries.push(entry);
        }
        entries
    }
}

/// Texts of entries.
pub(crate) fn texts(entries: &[LogEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.line.as_str()).collect()
}

/// What the command printed, byte for byte.
pub(crate) fn output(entries: &[LogEntry]) -> Vec<u8> {
    let output = entries.iter().filter(|entry| entry.source == LogSource::Server);
    output.flat_map(|entry| entry.bytes().into_owned()).collect()
}

/// The numbers from 1 on, each on a line.
pub(crate) fn assert_lines(got: &[u8], count: usize) {
    let got = String::from_utf8_lossy(got);
    let expected = (1..=count).map(|n| n.to_string());
    let wrong = got.lines().zip(expected).find(|(a, b)| a != b);
    assert!(wrong.is_none() && got.lines().count() == count, "{} lines: {wrong:?}", got.lines().count());
}

/// A command that was started by exec.
pub(crate) struct Exec(ExecEvents);

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exec_id: String,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) done: ExecDone,
}

impl Exec {
    pub(crate) async fn next(&mut self) -> Option<ExecEvent> {
        within(self.0.next()).await.unwrap()
    }

    /// The line that it prints next.
    pub(crate) async fn line(&mut self) -> String {
        loop {
            match self.next().await {
                Some(ExecEvent::Started(_)) => {}
                Some(ExecEvent::Entry(entry)) => return entry.line,
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn finish(mut self) -> Outcome {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().await.expect("the end is told") {
                ExecEvent::Started(_) => {}
                ExecEvent::Entry(entry) => {
                    assert_eq!(entry.source, LogSource::Exec);
                    let bytes = if entry.stream == LogStream::Stdout { &mut stdout } else { &mut stderr };
                    bytes.extend_from_slice(&entry.bytes());
                }
                ExecEvent::Done(done) => {
                    assert!(done.done && self.next().await.is_none());
                    return Outcome { exec_id: done.exec_id.clone(), stdout, stderr, done };
                }
            }
        }
    }
}

/// Commands that wait for a word of the test.
pub(crate) struct Gate(std::path::PathBuf);

impl Gate {
    pub(crate) fn new(home: &TestHome, name: &str) -> Self {
        let path = home.scratch().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        Self(path)
    }

    /// Shell code that waits.
    pub(crate) fn wait(&self) -> String {
        format!("read _ < {}", self.0.display())
    }

    /// Lets the command go on; returns when it does.
    pub(crate) async fn open(&self) {
        let path = self.0.clone();
        within(tokio::task::spawn_blocking(move || std::fs::write(path, "go\n").unwrap())).await.unwrap();
    }
}
