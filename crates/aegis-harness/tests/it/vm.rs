//! A harness on a fake machine, and the host's side of it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aegis_harness::Harness;
use aegis_harness::sys::fake::{FakePort, FakeSys};
use aegis_link::Stream;
use aegis_link::frames::{FrameReader, write_frame};
use aegis_link::host::{HostLink, greet};
use aegis_link::rpc::{CallError, Client};
use aegis_proto::control::{Process, RUN, Run, STATUS, StartFailure, Started, Status, Streams};
use aegis_proto::exec::{ExecEvent, ExecRequest, Start};
use aegis_proto::hello::{Hello, Welcome};
use aegis_proto::logs::{LogEvent, Subscribe};
use aegis_proto::service::Service;
use aegis_types::ExitStatus;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

/// Far above what anything here takes.
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("the deadline of tests is generous")
}

pub(crate) struct Vm {
    pub(crate) sys: Arc<FakeSys>,
    pub(crate) harness: Arc<Harness>,
}

impl Vm {
    pub(crate) fn new() -> Self {
        Self::on(FakeSys::new())
    }

    pub(crate) fn on(sys: FakeSys) -> Self {
        let sys = Arc::new(sys);
        let harness = Arc::new(Harness::boot(Arc::clone(&sys) as _));
        Self { sys, harness }
    }

    /// Serves one session on a fresh pipe; returns the host's end.
    pub(crate) fn connect(&self) -> (DuplexStream, JoinHandle<aegis_harness::SessionEnd>) {
        let (guest, host) = tokio::io::duplex(256 * 1024);
        let harness = Arc::clone(&self.harness);
        (host, tokio::spawn(async move { harness.serve(guest).await }))
    }

    /// Serves sessions on a port for ever.
    pub(crate) fn serve_port(&self) -> DuplexStream {
        let (port, host) = FakePort::new();
        let harness = Arc::clone(&self.harness);
        tokio::spawn(async move {
            loop {
                harness.serve(port.clone()).await;
            }
        });
        host
    }

    /// An established link.
    pub(crate) async fn link(&self) -> Host {
        let (host, _) = self.connect();
        Host::greet(host).await.0
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        generation: 1,
        nonce: "0123".to_owned(),
        time_unix_ns: 1_700_000_000_000_000_000,
        seed: "5a".repeat(32),
        hostname: "web".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        template: false,
        network: None,
        mounts: Vec::new(),
        disk_bytes: None,
    }
}

pub(crate) struct Host {
    pub(crate) link: HostLink,
    pub(crate) control: Client,
}

impl Host {
    pub(crate) async fn greet(carrier: DuplexStream) -> (Self, Welcome) {
        let (link, welcome) = within(greet(carrier, hello())).await.unwrap();
        let stream = within(link.open(Service::Control)).await.unwrap();
        let (control, _) = Client::new(stream);
        (Self { link, control }, welcome)
    }

    pub(crate) async fn run(&self, process: Process) -> Result<Started, CallError> {
        within(
            self.control.call(RUN, &Run { process, secret_files: Vec::new(), streams: Streams::default() }),
        )
        .await
    }

    /// The reason why a process could not be run.
    pub(crate) async fn run_failure(&self, process: Process) -> StartFailure {
        match self.run(process).await {
            Err(CallError::Rpc(error)) => serde_json::from_value(error.data.unwrap()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn status(&self) -> Status {
        within(self.control.call(STATUS, &())).await.unwrap()
    }

    pub(crate) async fn logs(&self, after_seq: u64) -> LogReader {
        let stream = within(self.link.open(Service::Logs)).await.unwrap();
        let (reader, mut writer) = tokio::io::split(stream);
        write_frame(&mut writer, &Subscribe { after_seq }.into_frame()).await.unwrap();
        LogReader { frames: FrameReader::new(reader), _writer: writer }
    }

    pub(crate) async fn exec(&self, process: Process, stdin: bool) -> Exec {
        self.ask(Service::Exec, ExecRequest::Start(Start { process, stdin, tty: None })).await
    }

    /// The same with everything that a request may have.
    pub(crate) async fn open(&self, request: ExecRequest) -> Exec {
        self.ask(Service::Streams, request).await
    }

    async fn ask(&self, service: Service, request: ExecRequest) -> Exec {
        let stream = within(self.link.open(service)).await.unwrap();
        let (reader, writer) = tokio::io::split(stream);
        let mut exec = Exec { events: ExecReader(FrameReader::new(reader)), requests: ExecWriter(writer) };
        exec.send(request).await;
        exec
    }

    /// Output and end of a process that started.
    pub(crate) async fn output(&self, process: Process) -> Finished {
        self.exec(process, false).await.finish().await
    }
}

pub(crate) struct LogReader {
    frames: FrameReader<ReadHalf<Stream>>,
    _writer: WriteHalf<Stream>,
}

impl LogReader {
    /// `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<LogEvent> {
        let frame = within(self.frames.next()).await.ok()??;
        Some(LogEvent::from_frame(frame).unwrap())
    }

    /// The next `count` lines as text, `\` standing for a missing newline.
    pub(crate) async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let Some(LogEvent::Line(line)) = self.next().await else { panic!("got {lines:?}, then no line") };
            let end = if line.partial { "\\" } else { "" };
            lines.push(format!("{}{end}", String::from_utf8(line.bytes).unwrap()));
        }
        lines
    }

    /// Everything up to the end of the process: bytes with newlines, number of lines given up, status.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, u64, ExitStatus) {
        let (mut bytes, mut dropped) = (Vec::new(), 0);
        loop {
            match self.next().await.expect("the exit comes before the end") {
                LogEvent::Line(line) => {
                    bytes.extend(line.bytes);
                    if !line.partial {
                        bytes.push(b'\n');
                    }
                }
                LogEvent::Dropped { count } => dropped += count,
                LogEvent::Exited(status) => return (bytes, dropped, status),
            }
        }
    }
}

pub(crate) struct Exec {
    events: ExecReader,
    requests: ExecWriter,
}

pub(crate) struct ExecReader(FrameReader<ReadHalf<Stream>>);

impl ExecReader {
    pub(crate) async fn next(&mut self) -> Option<ExecEvent> {
        let frame = within(self.0.next()).await.unwrap()?;
        Some(ExecEvent::from_frame(frame).unwrap())
    }
}

pub(crate) struct ExecWriter(WriteHalf<Stream>);

impl ExecWriter {
    pub(crate) async fn send(&mut self, request: ExecRequest) {
        within(write_frame(&mut self.0, &request.into_frame())).await.unwrap();
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: ExitStatus,
}

impl Exec {
    pub(crate) fn split(self) -> (ExecWriter, ExecReader) {
        (self.requests, self.events)
    }

    pub(crate) async fn send(&mut self, request: ExecRequest) {
        self.requests.send(request).await;
    }

    pub(crate) async fn next(&mut self) -> Option<ExecEvent> {
        self.events.next().await
    }

    pub(crate) async fn started(&mut self) -> u32 {
        match self.next().await {
            Some(ExecEvent::Started(Started { pid })) => pid,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn refused(&mut self) -> StartFailure {
        match self.next().await {
            Some(ExecEvent::Refused(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn finish(mut self) -> Finished {
        self.started().await;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().await.expect("the exit comes before the end") {
                ExecEvent::Stdout(bytes) => stdout.extend(bytes),
                ExecEvent::Stderr(bytes) => stderr.extend(bytes),
                ExecEvent::Exit(status) => {
                    assert_eq!(self.next().await, None);
                    return Finished { stdout, stderr, status };
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn process(command: &[&str]) -> Process {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    Process { command, env: [].into(), workdir: None, user: None }
}

pub(crate) fn sh(script: &str) -> Process {
    process(&["sh", "-c", script])
}

pub(crate) fn sh_with(script: &str, variables: &[(&str, &str)]) -> Process {
    let env = variables.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    Process { env, ..sh(script) }
}
