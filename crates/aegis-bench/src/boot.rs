//! `aegis bench boot`.

use std::path::Path;
use std::time::{Duration, Instant};

use aegis_api::DaemonStatus;
use aegis_client::Action;
use aegis_config::env;
use aegis_types::{Accelerator, StartKind};
use aegis_vmm::Start;
use aegis_vmm_qemu::Qemu;

use crate::bare::Until;
use crate::installation::Installation;
use crate::report::{Memory, Report, Row};
use crate::stats::Sample;
use crate::{BenchError, bare, guest, host, instance, timed};

const EXECS: u32 = 20;
const PAUSES: u32 = 10;

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
    let installation = Installation::start(kernel, &[(env::TEMPLATES, "off")]).await?;
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
    let spec = bare::machine(accelerator, kernel, scratch.path())?;
    let mut samples = Samples::default();
    for run in 0..runs {
        samples.bare.add(bare::start(&qemu, &spec, Start::Boot, Until::Call).await?.greeting);
        measure_instance(installation, &format!("bench-{run}"), &mut samples).await?;
        let mut command = installation.aegis()?;
        samples.run.add(timed::command(command.args(["run", "--", "true"])).await?);
    }
    let machine = host::machine(accelerator, &spec.vmm_path, guest_kernel);
    let rows = rows(&samples);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine,
        rows,
        counts: Vec::new(),
        disk: Vec::new(),
        memory,
    })
}

fn rows(samples: &Samples) -> Vec<Row> {
    let (bare, spawn) = (Some((BARE, &samples.bare)), Some((SPAWN, &samples.spawn)));
    let rows = [
        Row::new(BARE, &samples.bare, None),
        Row::new(COLD, &samples.cold, bare),
        Row::new(START, &samples.start, bare),
        Row::new(RUN, &samples.run, bare),
        Row::new(SPAWN, &samples.spawn, None),
        Row::new(EXEC, &samples.exec, spawn),
        Row::new(EXEC_CLI, &samples.exec_cli, spawn),
        Row::new(PAUSE, &samples.pause, None),
        Row::new(RESUME, &samples.resume, None),
    ];
    rows.into_iter().flatten().collect()
}

/// One instance: its boot, some execs, some pauses, its end.
async fn measure_instance(
    installation: &Installation,
    name: &str,
    samples: &mut Samples,
) -> Result<(), BenchError> {
    let client = &installation.client;
    let start = Instant::now();
    let id = instance::create(client, &instance::sleeper(name)?).await?;
    samples.start.add(start.elapsed());
    let boot_ms = instance::expect_start(client, &id, StartKind::Cold).await?;
    samples.cold.add(Duration::from_millis(boot_ms));
    samples.spawn.add(guest::spawn_cost(client, &id).await?);
    for _ in 0..EXECS {
        samples.exec.add(guest::exec(client, &id, &["true"]).await?.0);
    }
    for _ in 0..PAUSES {
        let mut command = installation.aegis()?;
        samples.exec_cli.add(timed::command(command.args(["exec", name, "--", "true"])).await?);
    }
    for _ in 0..PAUSES {
        samples.pause.add(timed::action(client, &id, Action::Pause).await?);
        samples.resume.add(timed::action(client, &id, Action::Resume).await?);
    }
    client.delete(&id).await?;
    Ok(())
}

/// Starts one instance for what is measured once: versions and memory.
async fn warm_up(installation: &Installation) -> Result<(String, Vec<Memory>), BenchError> {
    let client = &installation.client;
    let id = instance::create(client, &instance::sleeper("bench-warm-up")?).await?;
    let (_, release) = guest::exec(client, &id, &["uname", "-r"]).await?;
    let mut memory = Vec::new();
    let worker = installation.daemon_pid().and_then(|pid| host::child_named(pid, "aegis-vmm-worke"));
    memory.extend(
        worker
            .and_then(host::resident_kib)
            .map(|resident_kib| Memory { process: "worker of a live VM", resident_kib }),
    );
    client.delete(&id).await?;
    let daemon = installation.daemon_pid().and_then(host::resident_kib);
    memory.extend(daemon.map(|resident_kib| Memory { process: "aegisd, idle", resident_kib }));
    Ok((String::from_utf8_lossy(&release).trim().to_owned(), memory))
}
