//! `aegis bench start`.

use std::path::Path;
use std::time::{Duration, Instant};

use aegis_api::BuildTemplate;
use aegis_config::{Asset, env, locate};
use aegis_types::{Accelerator, StartKind};

use crate::bare::Until;
use crate::installation::Installation;
use crate::report::{Disk, Report, Row};
use crate::restore::BareTemplate;
use crate::stats::Sample;
use crate::{BenchError, bare, guest, host, instance, timed};

const BARE: &str = "bare restore, spawn to first answer";
const BARE_CALL: &str = "bare restore, spawn to first RPC";
const BARE_TRUE: &str = "bare restore, spawn to end of true";
const TEMPLATE: &str = "template start, spawn to first answer";
const RUN: &str = "aegis run -- true, template warm";
const START: &str = "instance start from template, to running";
const COLD: &str = "cold boot, spawn to first answer";
const COLD_START: &str = "instance start by cold boot, to running";

#[derive(Default)]
struct Samples {
    bare: Sample,
    bare_call: Sample,
    bare_true: Sample,
    template: Sample,
    vmm: Sample,
    load: Sample,
    guest: Sample,
    run: Sample,
    start: Sample,
    file: Sample,
    cold: Sample,
    cold_start: Sample,
}

/// Measures everything, floors and ours in turn, so that a busy moment hits both.
pub(crate) async fn measure(runs: u32, kernel: Option<&Path>) -> Result<Report, BenchError> {
    let warm = Installation::start(kernel, &[]).await?;
    let cold = Installation::start(kernel, &[(env::TEMPLATES, "off")]).await?;
    let result = measure_on(&warm, &cold, runs, kernel).await;
    warm.stop().await.and(cold.stop().await)?;
    result
}

async fn measure_on(
    warm: &Installation,
    cold: &Installation,
    runs: u32,
    kernel: Option<&Path>,
) -> Result<Report, BenchError> {
    let template = warm.client.build_template(&BuildTemplate::default()).await?;
    let accelerator = warm.client.status().await?.accelerator.unwrap_or(Accelerator::Tcg);
    let scratch = tempfile::tempdir().map_err(BenchError::io("make a directory"))?;
    let machine = bare::machine(accelerator, kernel, scratch.path())?;
    let vmm = locate(Asset::Vmm, None, warm.layout())?.path;
    let bare = BareTemplate::open(&warm.layout().templates().join(&template.key), machine, warm.layout())?;
    let guest_kernel = warm_up(warm, cold, &bare).await?;

    let mut samples = Samples::default();
    for run in 0..runs {
        let answers = bare.start(Until::Call).await?;
        samples.bare.add(answers.greeting);
        samples.bare_call.add(answers.call);
        samples.bare_true.add(bare.start(Until::EndOfTrue).await?.call);
        let name = format!("bench-{run}");
        let phases = started(warm, &name, true, StartKind::Template, &mut Sample::default()).await?;
        samples.template.add(phases.total);
        samples.vmm.add(phases.vmm);
        samples.load.add(phases.load);
        samples.guest.add(phases.guest);
        let mut command = warm.aegis()?;
        samples.run.add(timed::command(command.args(["run", "--", "true"])).await?);
        let phases = started(warm, &name, false, StartKind::Template, &mut samples.start).await?;
        samples.file.add(phases.total);
        let phases = started(cold, &name, false, StartKind::Cold, &mut samples.cold_start).await?;
        samples.cold.add(phases.total);
    }
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: host::machine(accelerator, &vmm, guest_kernel),
        rows: rows(&samples),
        counts: Vec::new(),
        disk: vec![Disk { name: "template", disk_kib: template.size_bytes / 1024 }],
        memory: Vec::new(),
    })
}

fn rows(samples: &Samples) -> Vec<Row> {
    let (bare, call) = (Some((BARE, &samples.bare)), Some((BARE_CALL, &samples.bare_call)));
    let rows = [
        Row::new(BARE, &samples.bare, None),
        Row::new(BARE_CALL, &samples.bare_call, None),
        Row::new(BARE_TRUE, &samples.bare_true, bare),
        Row::new(TEMPLATE, &samples.template, bare),
        Row::new("– until the VMM is ready", &samples.vmm, None),
        Row::new("– until the state is loaded", &samples.load, None),
        Row::new("– until the guest answers", &samples.guest, None),
        Row::new(RUN, &samples.run, call),
        Row::new("– beside the bare restore and true", &samples.run, Some((BARE_TRUE, &samples.bare_true))),
        Row::new(START, &samples.start, call),
        Row::new("– of it spawn to first answer", &samples.file, bare),
        Row::new(COLD, &samples.cold, bare),
        Row::new(COLD_START, &samples.cold_start, call),
    ];
    rows.into_iter().flatten().collect()
}

/// Once of everything: files are read from the disk, and the daemons decide on the accelerator.
async fn warm_up(
    warm: &Installation,
    cold: &Installation,
    bare: &BareTemplate,
) -> Result<String, BenchError> {
    bare.start(Until::Call).await?;
    let mut command = warm.aegis()?;
    timed::command(command.args(["run", "--", "true"])).await?;
    started(cold, "bench-warm-up", false, StartKind::Cold, &mut Sample::default()).await?;
    let id = instance::create(&warm.client, &instance::sleeper("bench-warm-up")?).await?;
    let (_, release) = guest::exec(&warm.client, &id, &["uname", "-r"]).await?;
    warm.client.delete(&id).await?;
    Ok(String::from_utf8_lossy(&release).trim().to_owned())
}

/// What the daemon says of a start.
struct Phases {
    total: Duration,
    vmm: Duration,
    load: Duration,
    guest: Duration,
}

/// Starts an instance and deletes it. The sample gets the time from the request to the running command.
async fn started(
    on: &Installation,
    name: &str,
    ephemeral: bool,
    kind: StartKind,
    sample: &mut Sample,
) -> Result<Phases, BenchError> {
    let request = aegis_api::CreateInstance { ephemeral, ..instance::sleeper(name)? };
    let start = Instant::now();
    let id = instance::create(&on.client, &request).await?;
    sample.add(start.elapsed());
    instance::expect_start(&on.client, &id, kind).await?;
    let stats = on.client.stats().await?;
    let stats = stats.instances.into_iter().find(|stats| stats.id.as_str() == id);
    let last = stats.and_then(|stats| stats.last_start);
    on.client.delete(&id).await?;
    let last =
        last.ok_or_else(|| BenchError::Failed(format!("the daemon does not know how {id} started")))?;
    let ms = Duration::from_millis;
    Ok(Phases {
        total: ms(last.total_ms),
        vmm: ms(last.vmm_ms),
        load: ms(last.load_ms),
        guest: ms(last.guest_ms),
    })
}
