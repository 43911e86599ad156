//! `aegis bench density`.

use std::path::Path;
use std::time::Duration;

use aegis_api::DaemonStats;
use aegis_client::Client;
use aegis_config::{Asset, env, locate};
use aegis_types::{Accelerator, InstanceState, PublicPort};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::installation::Installation;
use crate::report::{Count, Disk, Memory, Report, Row};
use crate::stats::Sample;
use crate::{BenchError, guest, host, instance, tcp};

/// Clients at the same time.
const CONCURRENT: usize = 8;
/// How often the daemon is asked what lives.
const LOOK_EVERY: Duration = Duration::from_millis(50);

const FIRST: &str = "first request to a new instance";
const ASKED: &str = "request to one of all instances";

/// How much there was at most.
#[derive(Default, Clone, Copy)]
struct Most {
    vms: u64,
    ram_mb: u64,
}

/// Declares many instances on a small budget and asks all of them.
pub(crate) async fn measure(count: u32, budget_mb: u32, kernel: Option<&Path>) -> Result<Report, BenchError> {
    let budget = budget_mb.to_string();
    // Started from their kernel the instances would need hours of an emulated CPU; a user's are clones as well.
    let installation = Installation::start(kernel, &[(env::RAM_BUDGET_MB, &budget)]).await?;
    let result = measure_on(&installation, count, u64::from(budget_mb)).await;
    installation.stop().await?;
    result
}

async fn measure_on(installation: &Installation, count: u32, budget_mb: u64) -> Result<Report, BenchError> {
    let client = &installation.client;
    client.build_template(&aegis_api::BuildTemplate::default()).await?;
    let watching = watch(client.clone());
    let mut first = Sample::default();
    let mut ports = Vec::new();
    let mut guest_kernel = String::new();
    for number in 0..count {
        let id = instance::create(client, &instance::responder(&format!("bench-{number}"))?).await?;
        if number == 0 {
            let (_, release) = guest::exec(client, &id, &["uname", "-r"]).await?;
            guest_kernel = String::from_utf8_lossy(&release).trim().to_owned();
        }
        let port = instance::public_port(client, &id).await?;
        first.add(tcp::ask(port).await?);
        ports.push(port);
    }
    let began = Instant::now();
    let (asked, failures) = ask_all(&ports).await;
    let took = began.elapsed();
    let most = watching.end().await?;

    let stats = client.stats().await?;
    let mut all = Sample::default();
    all.add(took);
    let rows = [
        Row::new(FIRST, &first, None),
        Row::new(ASKED, &asked, None),
        Row::new("all instances asked, 8 at a time", &all, None),
    ];
    let named = |name, count| Count { name, count };
    let daemon = installation.daemon_pid().and_then(host::resident_kib);
    let accelerator = client.status().await?.accelerator.unwrap_or(Accelerator::Tcg);
    let vmm = locate(Asset::Vmm, None, installation.layout())?.path;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: host::machine(accelerator, &vmm, guest_kernel),
        rows: rows.into_iter().flatten().collect(),
        counts: vec![
            named("declared instances", u64::from(count)),
            named("– answered", u64::from(count).saturating_sub(failures)),
            named("– did not answer", failures),
            named("VMs in memory at a time, at most", most.vms),
            named("MiB of memory given to VMs, at most", most.ram_mb),
            named("MiB of memory for VMs, budget", budget_mb),
            named("instances hibernated at the end", hibernated(&stats).count() as u64),
        ],
        disk: disk(&stats),
        memory: daemon
            .map(|resident_kib| Memory { process: "aegisd with all instances", resident_kib })
            .into_iter()
            .collect(),
    })
}

/// One request to each, a few at a time. Returns the times of the answers and the number of failures.
async fn ask_all(ports: &[PublicPort]) -> (Sample, u64) {
    let turns = std::sync::Arc::new(Semaphore::new(CONCURRENT));
    let mut asking = JoinSet::new();
    for &port in ports {
        let turns = turns.clone();
        asking.spawn(async move {
            let _turn = turns.acquire().await.expect("the semaphore is never closed");
            tcp::ask(port).await
        });
    }
    let (mut asked, mut failures) = (Sample::default(), 0);
    while let Some(answer) = asking.join_next().await {
        match answer {
            Ok(Ok(took)) => asked.add(took),
            Ok(Err(_)) | Err(_) => failures += 1,
        }
    }
    (asked, failures)
}

fn hibernated(stats: &DaemonStats) -> impl Iterator<Item = &aegis_api::InstanceStats> {
    stats.instances.iter().filter(|stats| stats.state == InstanceState::Hibernated)
}

/// Of one hibernated instance, on average.
fn disk(stats: &DaemonStats) -> Vec<Disk> {
    let count = hibernated(stats).count() as u64;
    let mean = |bytes: fn(&aegis_api::InstanceStats) -> u64| {
        hibernated(stats).map(bytes).sum::<u64>().checked_div(count).unwrap_or_default() / 1024
    };
    vec![
        Disk { name: "memory of a hibernated instance", disk_kib: mean(|stats| stats.memory_image_bytes) },
        Disk { name: "root file system of a hibernated instance", disk_kib: mean(|stats| stats.disk_bytes) },
    ]
}

/// Somebody who looks at the daemon.
struct Watching {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<Most, BenchError>>,
}

fn watch(client: Client) -> Watching {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let mut most = Most::default();
        loop {
            let stats = client.stats().await?;
            let vms = stats.instances.iter().filter(|stats| {
                matches!(
                    stats.state,
                    InstanceState::Starting | InstanceState::Running | InstanceState::Paused
                ) && stats.rss_bytes > 0
            });
            most.vms = most.vms.max(vms.count() as u64);
            most.ram_mb = most.ram_mb.max(stats.ram_used_mb);
            tokio::select! {
                _ = &mut stopped => return Ok(most),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    });
    Watching { stop, task }
}

impl Watching {
    async fn end(self) -> Result<Most, BenchError> {
        // It may have ended by itself, and then says why.
        let _ = self.stop.send(());
        self.task.await.map_err(|e| BenchError::Failed(format!("nobody looked at the daemon: {e}")))?
    }
}
