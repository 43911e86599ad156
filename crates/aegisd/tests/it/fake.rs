//! A launcher whose guests understand a few commands:
//!
//! `serve TEXT…` prints each text as a line and goes on · `exit N` ends with code N ·
//! `say TEXT…` prints lines and ends with 0 · `ask TEXT` prints without a newline and waits for SIGKILL ·
//! `flood N` prints N lines and ends with 0 · `hang` waits for SIGKILL · anything else is not found.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aegis_lifecycle::ports::{Adoption, LaunchError, Launched, Launcher, Worker, WorkerError};
use aegis_lifecycle::record::InstanceSpec;
use aegis_link::Carrier;
use aegis_link::frames::{FrameReader, write_frame};
use aegis_link::rpc::{self, Handler};
use aegis_proto::control::{self, Process, Run, StartFailure, StartFailureKind, Started};
use aegis_proto::exec::{ExecEvent, ExecRequest};
use aegis_proto::jsonrpc::{self, RpcError};
use aegis_proto::logs::{LogEvent, LogLine, OutputStream};
use aegis_proto::service::Service;
use aegis_proto::worker::{
    BootFailure, Confinement, ExitReason, Exited, Phase, Ready, StartPhases, WorkerStatus,
};
use aegis_types::{ExitStatus, InstanceId, ProcessInput, StartKind, VmId};
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;

/// Outlives the daemon, as worker processes do.
#[derive(Default)]
pub(crate) struct FakeLauncher {
    live: Mutex<HashMap<InstanceId, (VmId, Arc<FakeWorker>)>>,
    pub(crate) removed: Mutex<Vec<InstanceId>>,
}

pub(crate) struct FakeWorker {
    /// The command that the guest runs.
    primary: watch::Sender<Option<Vec<String>>>,
    exited: watch::Sender<Option<Exited>>,
    phase: Mutex<Phase>,
}

impl FakeLauncher {
    /// Ends the VM without asking anybody.
    pub(crate) fn crash(&self, id: &InstanceId) {
        self.live.lock().unwrap()[id].1.end(ExitReason::VmmDied);
    }

    pub(crate) fn live_count(&self) -> usize {
        self.live.lock().unwrap().values().filter(|(_, worker)| worker.exited.borrow().is_none()).count()
    }
}

#[async_trait]
impl Launcher for FakeLauncher {
    async fn launch(&self, spec: &InstanceSpec, vm: &VmId) -> Result<Launched, LaunchError> {
        if spec.command[0] == "unlaunchable" {
            return Err(LaunchError { message: "no kernel".to_owned(), hint: Some("get one".to_owned()) });
        }
        let worker = Arc::new(FakeWorker {
            primary: watch::Sender::new(None),
            exited: watch::Sender::new(None),
            phase: Mutex::new(Phase::Running),
        });
        self.live.lock().unwrap().insert(spec.id.clone(), (vm.clone(), Arc::clone(&worker)));
        Ok(Launched { worker, notes: Vec::new() })
    }

    async fn has_saved(&self, _: &InstanceId) -> bool {
        false
    }

    async fn discard_saved(&self, _: &InstanceId) {}

    async fn adopt(&self, id: &InstanceId) -> Adoption {
        match self.live.lock().unwrap().get(id) {
            Some((vm, worker)) if worker.exited.borrow().is_none() => {
                Adoption::Alive { vm: vm.clone(), worker: Arc::clone(worker) as Arc<dyn Worker> }
            }
            Some((_, worker)) => Adoption::Gone(worker.exited.borrow().clone()),
            None => Adoption::None,
        }
    }

    async fn clean_up(&self, id: &InstanceId) {
        self.live.lock().unwrap().remove(id);
    }

    async fn remove(&self, spec: &InstanceSpec) -> io::Result<()> {
        self.removed.lock().unwrap().push(spec.id.clone());
        Ok(())
    }
}

impl FakeWorker {
    fn end(&self, reason: ExitReason) {
        self.exited.send_if_modified(|exited| {
            let first = exited.is_none();
            exited.get_or_insert(Exited { reason, message: "the script says so".to_owned() });
            first
        });
    }
}

#[async_trait]
impl Worker for FakeWorker {
    async fn wait_ready(&self) -> Result<Ready, BootFailure> {
        Ok(Ready {
            harness_version: "1.2.3".to_owned(),
            generation: 1,
            boot_ms: 7,
            attempts: 1,
            start: StartKind::Cold,
            fallback: None,
            boot_id: None,
            phases: StartPhases::default(),
        })
    }

    async fn status(&self) -> Result<WorkerStatus, WorkerError> {
        Ok(WorkerStatus {
            phase: *self.phase.lock().unwrap(),
            vmm_pid: None,
            confinement: Confinement { landlock_abi: 3, seccomp: true, no_new_privs: true, cgroup: None },
            version: "1.2.3".to_owned(),
        })
    }

    async fn pause(&self) -> Result<(), WorkerError> {
        *self.phase.lock().unwrap() = Phase::Paused;
        Ok(())
    }

    async fn resume(&self) -> Result<(), WorkerError> {
        *self.phase.lock().unwrap() = Phase::Running;
        Ok(())
    }

    async fn hibernate(&self) -> Result<(), WorkerError> {
        Err(WorkerError("the fake cannot".to_owned()))
    }

    async fn stop(&self, _: Duration) -> Result<(), WorkerError> {
        self.end(ExitReason::Stopped);
        Ok(())
    }

    async fn open_with(&self, service: Service, first: &[u8]) -> Result<Box<dyn Carrier>, WorkerError> {
        let (mut ours, theirs) = tokio::io::duplex(64 << 10);
        ours.write_all(first).await.unwrap();
        let guest = Guest { primary: self.primary.clone() };
        let mut exited = self.exited.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = guest.serve(service, theirs) => {}
                _ = exited.wait_for(Option::is_some) => {}
            }
        });
        Ok(Box::new(ours))
    }

    async fn exited(&self) -> Exited {
        self.exited.subscribe().wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }
}

struct Guest {
    primary: watch::Sender<Option<Vec<String>>>,
}

impl Guest {
    async fn serve(self, service: Service, stream: DuplexStream) {
        match service {
            Service::Control => drop(rpc::serve(stream, Arc::new(Control(self)), None).await),
            Service::Logs => self.logs(stream).await,
            Service::Exec | Service::Streams => exec(stream).await,
            Service::Tcp | Service::Activity | Service::Fuse | Service::Files => {}
        }
    }

    async fn logs(&self, stream: DuplexStream) {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut frames = FrameReader::new(reader);
        frames.next().await.unwrap().unwrap();
        let mut primary = self.primary.subscribe();
        let Ok(command) = primary.wait_for(Option::is_some).await.map(|c| c.clone().unwrap()) else { return };
        let (_, arguments) = command.split_first().unwrap();
        if command[0] == "serve" {
            for (seq, text) in (1..).zip(arguments) {
                let line = LogLine {
                    seq,
                    time_unix_ns: 1_700_000_000_000_000_000 + seq,
                    stream: OutputStream::Stdout,
                    partial: false,
                    bytes: text.clone().into_bytes(),
                };
                write_frame(&mut writer, &LogEvent::Line(line).into_frame()).await.unwrap();
            }
        }
        if command[0] == "exit" {
            let status = ExitStatus::exited(arguments[0].parse().unwrap());
            write_frame(&mut writer, &LogEvent::Exited(status).into_frame()).await.unwrap();
        }
        // Until the host goes away.
        let _ = frames.next().await;
    }
}

struct Control(Guest);

#[async_trait]
impl Handler for Control {
    async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        match method {
            control::RUN => {
                let run: Run = jsonrpc::parse_params(params)?;
                self.0.primary.send_replace(Some(run.process.command));
                Ok(json!(Started { pid: 1 }))
            }
            control::STATUS => {
                let primary_pid = self.0.primary.borrow().is_some().then_some(1);
                Ok(json!(control::Status {
                    version: "1.2.3".to_owned(),
                    primary_pid,
                    primary_exit: None,
                    secret_files: true,
                    streams: true,
                }))
            }
            _ => Ok(Value::Null),
        }
    }
}

async fn exec(stream: DuplexStream) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut frames = FrameReader::new(reader);
    let start = ExecRequest::from_frame(frames.next().await.unwrap().unwrap()).unwrap();
    let ExecRequest::Start(start) = start else { panic!("{start:?}") };
    let Process { command, .. } = start.process;
    let known = ["say", "ask", "flood", "hang", "exit"].contains(&command[0].as_str());
    let first = if known {
        ExecEvent::Started(Started { pid: 9 })
    } else {
        let message = format!("cannot run `{}`: not found", command[0]);
        ExecEvent::Refused(StartFailure { kind: StartFailureKind::NotFound, message })
    };
    let mut events = vec![first];
    let mut waits = false;
    match command[0].as_str() {
        "say" => events.extend(command[1..].iter().map(|t| ExecEvent::Stdout(format!("{t}\n").into_bytes()))),
        "flood" => {
            let count: usize = command[1].parse().unwrap();
            let text: String = (0..count).map(|n| format!("line {n}\n")).collect();
            events.extend(text.into_bytes().chunks(60_000).map(|chunk| ExecEvent::Stdout(chunk.to_vec())));
        }
        "ask" => {
            events.push(ExecEvent::Stderr(command[1].clone().into_bytes()));
            waits = true;
        }
        _ => waits = command[0] == "hang",
    }
    for event in events {
        if write_frame(&mut writer, &event.into_frame()).await.is_err() {
            return;
        }
    }
    let end = if waits {
        match frames.next().await {
            Ok(Some(frame)) => match ExecRequest::from_frame(frame) {
                Ok(ExecRequest::Input(ProcessInput::Signal(number))) => ExitStatus::killed(number),
                other => panic!("{other:?}"),
            },
            _ => return,
        }
    } else {
        let code = if command[0] == "exit" { command[1].parse().unwrap() } else { 0 };
        ExitStatus::exited(code)
    };
    if known {
        let _ = write_frame(&mut writer, &ExecEvent::Exit(end).into_frame()).await;
    }
}
