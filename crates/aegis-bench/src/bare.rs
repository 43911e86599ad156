//! The floor: the same VMM, kernel and initramfs with nothing of ours around them, from spawn to the first answer.

use std::path::Path;
use std::time::{Duration, Instant};

use aegis_link::host;
use aegis_proto::GENERATION;
use aegis_proto::hello::Hello;
use aegis_types::VmSpec;
use aegis_vmm::{Start, Vm, Vmm as _};
use aegis_vmm_qemu::Qemu;

use crate::BenchError;

const DEADLINE: Duration = Duration::from_secs(60);

/// Boots once and measures.
pub(crate) async fn boot(qemu: &Qemu, spec: &VmSpec) -> Result<Duration, BenchError> {
    let start = Instant::now();
    let vm = qemu.boot(spec, Start::Boot).await?;
    let greeted = tokio::time::timeout(DEADLINE, greet(vm.as_ref())).await;
    let took = start.elapsed();
    vm.kill();
    vm.exited().await;
    greeted.map_err(|_| BenchError::Failed(format!("the bare VM did not answer within {DEADLINE:?}")))??;
    Ok(took)
}

async fn greet(vm: &dyn Vm) -> Result<(), BenchError> {
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
    link.close();
    Ok(())
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
