//! The floors: the same VMM, kernel and initramfs with nothing of ours around them, from spawn to the first answers.

use std::path::Path;
use std::time::{Duration, Instant};

use aegis_config::{Asset, Home, locate};
use aegis_link::{host, rpc};
use aegis_proto::GENERATION;
use aegis_proto::control::{self, Status};
use aegis_proto::hello::Hello;
use aegis_proto::service::Service;
use aegis_types::{Accelerator, Mib, Ram, Vcpus, VmId, VmSpec};
use aegis_vmm::{Start, Vm, Vmm as _};
use aegis_vmm_qemu::Qemu;

use crate::BenchError;

const DEADLINE: Duration = Duration::from_secs(60);

/// Times of one start, from the spawn of the VMM.
pub(crate) struct Answers {
    /// The guest answered the greeting.
    pub(crate) greeting: Duration,
    /// It answered a call.
    pub(crate) call: Duration,
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
pub(crate) async fn start(qemu: &Qemu, spec: &VmSpec, from: Start<'_>) -> Result<Answers, BenchError> {
    let start = Instant::now();
    let vm = qemu.boot(spec, from).await?;
    let answers = tokio::time::timeout(DEADLINE, talk(vm.as_ref(), start)).await;
    vm.kill();
    vm.exited().await;
    answers.map_err(|_| BenchError::Failed(format!("the bare VM did not answer within {DEADLINE:?}")))?
}

async fn talk(vm: &dyn Vm, start: Instant) -> Result<Answers, BenchError> {
    let carrier = vm.connect().await?;
    let hello = Hello {
        generation: GENERATION,
        nonce: "bench".to_owned(),
        time_unix_ns: unix_ns(),
        seed: seed()?,
        hostname: "bench".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        template: false,
    };
    let (link, _welcome) = host::greet(carrier, hello).await?;
    let greeting = start.elapsed();
    let (client, _notifications) = rpc::Client::new(link.open(Service::Control).await?);
    let called: Result<Status, _> = client.call(control::STATUS, &()).await;
    let call = start.elapsed();
    called.map_err(|e| BenchError::Failed(format!("the bare VM refused a call: {e}")))?;
    link.close();
    Ok(Answers { greeting, call })
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
