//! The floors: the same VMM, kernel and initramfs with nothing of ours around them, from spawn to the first answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use aegis_config::{Asset, Home, locate};
use aegis_link::frames::{FrameReader, write_frame};
use aegis_link::{Stream, host, rpc};
use aegis_proto::GENERATION;
use aegis_proto::control::{self, Process, Run, Started, Status};
use aegis_proto::hello::{GuestNetwork, Hello};
use aegis_proto::logs::{LogEvent, Subscribe};
use aegis_proto::service::Service;
use aegis_types::{Accelerator, Mib, Ram, Vcpus, VmId, VmSpec};
use aegis_vmm::{Start, Vm, Vmm as _};
use aegis_vmm_qemu::Qemu;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::BenchError;

const DEADLINE: Duration = Duration::from_secs(60);
/// Transfers in an emulated machine take their time.
const RUN_DEADLINE: Duration = Duration::from_secs(600);

/// Times of one start, from the spawn of the VMM.
pub(crate) struct Answers {
    /// The guest answered the greeting.
    pub(crate) greeting: Duration,
    /// It answered a call.
    pub(crate) call: Duration,
}

/// How far a start is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// The answer to a call.
    Call,
    /// The end of `true`, run as an instance runs its command. That is instead of the call.
    EndOfTrue,
}

/// A machine without disks, with memory and CPUs as an instance has them.
pub(crate) fn machine(
    accelerator: Accelerator,
    kernel: Option<&Path>,
    runtime_dir: &Path,
) -> Result<VmSpec, BenchError> {
    let home = Home::resolve(None)?;
    Ok(VmSpec {
        vm_id: VmId::from_random(0),
        vmm_path: locate(Asset::Vmm, None, &home)?.path,
        accelerator,
        kernel: locate(Asset::Kernel, kernel, &home)?.path,
        initramfs: locate(Asset::Initramfs, None, &home)?.path,
        memory: Mib::DEFAULT,
        vcpus: Vcpus::DEFAULT,
        disks: Vec::new(),
        ram: Ram::default(),
        runtime_dir: runtime_dir.to_owned(),
    })
}

/// Starts once and measures.
pub(crate) async fn start(
    qemu: &Qemu,
    spec: &VmSpec,
    from: Start<'_>,
    until: Until,
) -> Result<Answers, BenchError> {
    let start = Instant::now();
    let vm = qemu.boot(spec, from).await?;
    mount_nothing(vm.as_ref());
    let answers = tokio::time::timeout(DEADLINE, talk(vm.as_ref(), start, until)).await;
    vm.kill();
    vm.exited().await;
    answers.map_err(|_| BenchError::Failed(format!("the bare VM did not answer within {DEADLINE:?}")))?
}

/// Answers the VMM for the disk with the content of mounted files, of which there are none: it does not start before.
pub(crate) fn mount_nothing(vm: &dyn Vm) {
    if let Some(stream) = vm.content() {
        // It ends with the VMM.
        std::thread::spawn(move || aegis_fs::serve_content(&stream, &[]));
    }
}

fn hello(network: Option<GuestNetwork>) -> Result<Hello, BenchError> {
    Ok(Hello {
        generation: GENERATION,
        nonce: "bench".to_owned(),
        time_unix_ns: unix_ns(),
        seed: seed()?,
        hostname: "bench".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        template: false,
        network,
        mounts: Vec::new(),
        disk_bytes: None,
    })
}

/// Runs a command in a VM that has the root file system of an instance, and returns its output.
pub(crate) async fn run(vm: &dyn Vm, network: GuestNetwork, process: Process) -> Result<String, BenchError> {
    let work = async {
        let (link, _welcome) = host::greet(vm.connect().await?, hello(Some(network))?).await?;
        let (client, _notifications) = rpc::Client::new(link.open(Service::Control).await?);
        let logs = link.open(Service::Logs).await?;
        call::<Started>(
            &client,
            control::RUN,
            &Run { process, secret_files: Vec::new(), streams: control::Streams::default() },
        )
        .await?;
        ended(logs).await
    };
    let ended = tokio::time::timeout(RUN_DEADLINE, work).await;
    ended.map_err(|_| BenchError::Failed(format!("the bare VM did not end within {RUN_DEADLINE:?}")))?
}

async fn talk(vm: &dyn Vm, start: Instant, until: Until) -> Result<Answers, BenchError> {
    let (link, _welcome) = host::greet(vm.connect().await?, hello(None)?).await?;
    let greeting = start.elapsed();
    let (client, _notifications) = rpc::Client::new(link.open(Service::Control).await?);
    match until {
        Until::Call => call::<Status>(&client, control::STATUS, &()).await?,
        Until::EndOfTrue => {
            let process =
                Process { command: vec!["true".to_owned()], env: BTreeMap::new(), workdir: None, user: None };
            // Both at once: nothing forbids it, so that it belongs to a floor.
            let logs = link.open(Service::Logs).await?;
            let run = Run { process, secret_files: Vec::new(), streams: control::Streams::default() };
            tokio::try_join!(call::<Started>(&client, control::RUN, &run), ended(logs))?;
        }
    }
    let call = start.elapsed();
    link.close();
    Ok(Answers { greeting, call })
}

async fn call<R: DeserializeOwned>(
    client: &rpc::Client,
    method: &str,
    params: &impl Serialize,
) -> Result<(), BenchError> {
    let called: Result<R, _> = client.call(method, params).await;
    called.map(drop).map_err(|e| BenchError::Failed(format!("the bare VM refused a call: {e}")))
}

/// Waits for the end of the command and returns what it said.
async fn ended(mut logs: Stream) -> Result<String, BenchError> {
    let failed = |e: &dyn std::fmt::Display| BenchError::Failed(format!("the bare VM has no output: {e}"));
    write_frame(&mut logs, &Subscribe { after_seq: 0 }.into_frame()).await.map_err(|e| failed(&e))?;
    let (mut frames, mut said) = (FrameReader::new(logs), String::new());
    while let Some(frame) = frames.next().await.map_err(|e| failed(&e))? {
        match LogEvent::from_frame(frame).map_err(|e| failed(&e))? {
            LogEvent::Exited(_) => return Ok(said),
            LogEvent::Line(line) => {
                said.push_str(&String::from_utf8_lossy(&line.bytes));
                said.push('\n');
            }
            _ => {}
        }
    }
    Err(failed(&"it was cut off"))
}

fn unix_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn seed() -> Result<String, BenchError> {
    let mut bytes = [0; 64];
    getrandom::fill(&mut bytes).map_err(|e| BenchError::Failed(format!("cannot get random bytes: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The file name of a path, for a report.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
