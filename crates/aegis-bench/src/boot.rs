//! `aegis bench boot`.

use std::path::Path;
use std::time::{Duration, Instant};

use aegis_api::{CreateInstance, DaemonStatus};
use aegis_client::{Action, Client, Creation};
use aegis_config::{Asset, Home, locate};
use aegis_types::{Accelerator, InstanceState, Mib, Ram, Vcpus, VmId, VmSpec};
use aegis_vmm_qemu::Qemu;

use crate::installation::Installation;
use crate::report::{Machine, Memory, Report, Row};
use crate::stats::Sample;
use crate::{BenchError, bare, guest};

const EXECS: u32 = 20;
const PAUSES: u32 = 10;
const POLL: Duration = Duration::from_millis(2);

const BARE: &str = "bare VMM, spawn to first answer";
const COLD: &str = "cold boot, spawn to first answer";
const START: &str = "cold boot, request to running";
const RUN: &str = "aegis run -- true";
const SPAWN: &str = "fork+exec of true in the guest";
const EXEC: &str = "exec true, request to end";
const EXEC_CLI: &str = "aegis exec x -- true";
const PAUSE: &str = "pause";
const RESUME: &str = "resume";

#[derive(Default)]
struct Samples {
    bare: Sample,
    cold: Sample,
    start: Sample,
    run: Sample,
    spawn: Sample,
    exec: Sample,
    exec_cli: Sample,
    pause: Sample,
    resume: Sample,
}

/// Measures everything, floors and ours in turn, so that a busy moment hits both.
pub(crate) async fn measure(runs: u32, kernel: Option<&Path>) -> Result<Report, BenchError> {
    let installation = Installation::start(kernel).await?;
    let result = measure_on(&installation, runs, kernel).await;
    installation.stop().await?;
    result
}

async fn measure_on(
    installation: &Installation,
    runs: u32,
    kernel: Option<&Path>,
) -> Result<Report, BenchError> {
    let client = &installation.client;
    let status = client.status().await?;
    // The first start decides on the accelerator; it is not part of the measurement.
    let (guest_kernel, memory) = warm_up(installation).await?;
    let status = DaemonStatus { accelerator: client.status().await?.accelerator, ..status };
    let accelerator = status.accelerator.unwrap_or(Accelerator::Tcg);

    let qemu = Qemu::new();
    let scratch = tempfile::tempdir().map_err(BenchError::io("make a directory"))?;
    let spec = bare_spec(accelerator, kernel, scratch.path())?;
    let mut samples = Samples::default();
    for run in 0..runs {
        samples.bare.add(bare::boot(&qemu, &spec).await?);
        measure_instance(installation, &format!("bench-{run}"), &mut samples).await?;
        let mut command = installation.aegis()?;
        samples.run.add(time_command(command.args(["run", "--", "true"])).await?);
    }
    let machine = Machine {
        cpu: cpu_model(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        host_kernel: read("/proc/sys/kernel/osrelease"),
        guest_kernel,
        accelerator: format!("{} ({})", accelerator, bare::file_name(&spec.vmm_path)),
    };
    Ok(Report { version: env!("CARGO_PKG_VERSION"), machine, rows: rows(&samples), memory })
}

fn rows(samples: &Samples) -> Vec<Row> {
    let with_floor = [
        (BARE, &samples.bare, None),
        (COLD, &samples.cold, Some((BARE, &samples.bare))),
        (START, &samples.start, Some((BARE, &samples.bare))),
        (RUN, &samples.run, Some((BARE, &samples.bare))),
        (SPAWN, &samples.spawn, None),
        (EXEC, &samples.exec, Some((SPAWN, &samples.spawn))),
        (EXEC_CLI, &samples.exec_cli, Some((SPAWN, &samples.spawn))),
        (PAUSE, &samples.pause, None),
        (RESUME, &samples.resume, None),
    ];
    with_floor
        .into_iter()
        .filter_map(|(name, sample, floor)| {
            let ms = sample.summary()?;
            let ratio = floor.and_then(|(_, floor)| Some(ms.median / floor.summary()?.median));
            Some(Row { name, ms, floor: floor.map(|(name, _)| name), ratio })
        })
        .collect()
}

/// One instance: its boot, some execs, some pauses, its end.
async fn measure_instance(
    installation: &Installation,
    name: &str,
    samples: &mut Samples,
) -> Result<(), BenchError> {
    let client = &installation.client;
    let start = Instant::now();
    let id = create(client, name).await?;
    samples.start.add(start.elapsed());
    let info = client.get(&id).await?;
    if let Some(boot_ms) = info.boot_ms {
        samples.cold.add(Duration::from_millis(boot_ms));
    }
    samples.spawn.add(guest::spawn_cost(client, &id).await?);
    for _ in 0..EXECS {
        samples.exec.add(guest::exec(client, &id, &["true"]).await?.0);
    }
    for _ in 0..PAUSES {
        let mut command = installation.aegis()?;
        samples.exec_cli.add(time_command(command.args(["exec", name, "--", "true"])).await?);
    }
    for _ in 0..PAUSES {
        samples.pause.add(time_action(client, &id, Action::Pause).await?);
        samples.resume.add(time_action(client, &id, Action::Resume).await?);
    }
    client.delete(&id).await?;
    Ok(())
}

/// Starts one instance for what is measured once: versions and memory.
async fn warm_up(installation: &Installation) -> Result<(String, Vec<Memory>), BenchError> {
    let client = &installation.client;
    let id = create(client, "bench-warm-up").await?;
    let (_, release) = guest::exec(client, &id, &["uname", "-r"]).await?;
    let mut memory = Vec::new();
    let worker = installation.daemon_pid().and_then(|pid| child_named(pid, "aegis-vmm-worke"));
    memory.extend(
        worker
            .and_then(resident_kib)
            .map(|resident_kib| Memory { process: "worker of a live VM", resident_kib }),
    );
    client.delete(&id).await?;
    let daemon = installation.daemon_pid().and_then(resident_kib);
    memory.extend(daemon.map(|resident_kib| Memory { process: "aegisd, idle", resident_kib }));
    Ok((String::from_utf8_lossy(&release).trim().to_owned(), memory))
}

/// Creates a sleeping instance and waits until it runs.
async fn create(client: &Client, name: &str) -> Result<String, BenchError> {
    let handle = name.parse().map_err(|e| BenchError::Failed(format!("{e}")))?;
    let command = ["sleep", "1000000"].map(str::to_owned).to_vec();
    let request = CreateInstance { command, handle: Some(handle), ..Default::default() };
    let created = match client.create(&request).await? {
        Creation::Created(created) | Creation::Restarted(created) => created,
    };
    let id = created.id.to_string();
    loop {
        let info = client.get(&id).await?;
        match info.state {
            InstanceState::Running => return Ok(id),
            InstanceState::Stopped | InstanceState::Hibernated => {
                let why = info.last_error.unwrap_or_else(|| "it stopped".to_owned());
                return Err(BenchError::Failed(format!("the instance did not start: {why}")));
            }
            InstanceState::Starting | InstanceState::Paused => tokio::time::sleep(POLL).await,
        }
    }
}

async fn time_action(client: &Client, id: &str, action: Action) -> Result<Duration, BenchError> {
    let start = Instant::now();
    client.action(id, action).await?;
    Ok(start.elapsed())
}

async fn time_command(command: &mut tokio::process::Command) -> Result<Duration, BenchError> {
    let start = Instant::now();
    let status = command.status().await.map_err(BenchError::io("run aegis"))?;
    if status.success() {
        Ok(start.elapsed())
    } else {
        Err(BenchError::Failed(format!("aegis failed: {status}")))
    }
}

fn bare_spec(accelerator: Accelerator, kernel: Option<&Path>, scratch: &Path) -> Result<VmSpec, BenchError> {
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
        runtime_dir: scratch.to_owned(),
    })
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn cpu_model() -> String {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| "unknown CPU".to_owned(), |(_, name)| name.trim().to_owned())
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = read(&format!("/proc/{pid}/status"));
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

/// The child of a process with this name (the kernel keeps 15 characters of it). Children are listed by thread.
fn child_named(parent: u32, name: &str) -> Option<u32> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten();
    let children: Vec<String> =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok()).collect();
    let mut pids =
        children.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok());
    pids.find(|pid: &u32| read(&format!("/proc/{pid}/comm")) == name)
}
