//! `aegis bench wake`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use aegis_api::InstanceStats;
use aegis_client::{Action, Client};
use aegis_config::{Asset, locate};
use aegis_proto::saved::{SAVED_FILE, SavedVm};
use aegis_types::{Accelerator, InstanceId, InstanceState, PublicPort, StartKind};

use crate::installation::Installation;
use crate::report::{Count, Disk, Memory, Report, Row};
use crate::stats::Sample;
use crate::{BenchError, guest, host, instance, tcp, timed};

/// Requests of one round to a VM that runs.
const WARM: u32 = 10;
/// Time for a saved VM to reach the disk.
const DURABLE_DEADLINE: Duration = Duration::from_secs(120);
/// Time for the processes of a VM to be gone when it is saved.
const GONE_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

const RUNNING: &str = "running, connect to first byte";
const PAUSED: &str = "paused, connect to first byte";
const HIBERNATED: &str = "hibernated, connect to first byte";
const HIBERNATE: &str = "hibernate, request to hibernated";
const RACE: &str = "hibernated, racing clients to last answer";

#[derive(Default)]
struct Samples {
    running: Sample,
    paused: Sample,
    hibernate: Sample,
    hibernated: Sample,
    /// What the daemon says of those wakes.
    restore: Sample,
    race: Sample,
    answers: u64,
    failures: u64,
    wakes: u64,
}

/// What of an instance is counted.
struct Instance<'a> {
    installation: &'a Installation,
    client: &'a Client,
    id: InstanceId,
    port: PublicPort,
}

/// Measures everything in turn, so that a busy moment hits all of it.
pub(crate) async fn measure(runs: u32, clients: u32, kernel: Option<&Path>) -> Result<Report, BenchError> {
    let installation = Installation::start(kernel, &[]).await?;
    let result = measure_on(&installation, runs, clients).await;
    installation.stop().await?;
    result
}

async fn measure_on(installation: &Installation, runs: u32, clients: u32) -> Result<Report, BenchError> {
    let client = &installation.client;
    let id = instance::create(client, &instance::responder("bench")?).await?;
    let instance = Instance {
        installation,
        client,
        port: instance::public_port(client, &id).await?,
        id: id.parse().map_err(|e| BenchError::Failed(format!("{e}")))?,
    };
    let (_, release) = guest::exec(client, &id, &["uname", "-r"]).await?;
    // The responder answers from here on; the first wake reads what later ones find in the page cache.
    tcp::ask(instance.port).await?;
    instance.hibernate().await?;
    tcp::ask(instance.port).await?;

    let mut samples = Samples::default();
    let (mut disk, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        for _ in 0..WARM {
            samples.running.add(tcp::ask(instance.port).await?);
        }
        timed::action(client, &id, Action::Pause).await?;
        samples.paused.add(tcp::ask(instance.port).await?);

        samples.hibernate.add(instance.hibernate().await?);
        (disk, memory) = instance.cost().await?;
        let before = instance.stats().await?.starts.restore;
        samples.hibernated.add(tcp::ask(instance.port).await?);
        samples.restore.add(instance.woken(before).await?);

        instance.hibernate().await?;
        let before = instance.stats().await?.wakes;
        let race = tcp::race(instance.port, clients).await?;
        if let Some(why) = race.failure {
            anstream::eprintln!("warning: {} of {clients} clients: {why}", race.failures);
        }
        samples.answers += race.answers;
        samples.failures += race.failures;
        samples.wakes += instance.stats().await?.wakes - before;
        samples.race.add(race.took);
    }
    let accelerator = client.status().await?.accelerator.unwrap_or(Accelerator::Tcg);
    let vmm = locate(Asset::Vmm, None, installation.layout())?.path;
    client.delete(&id).await?;
    let guest_kernel = String::from_utf8_lossy(&release).trim().to_owned();
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: host::machine(accelerator, &vmm, guest_kernel),
        rows: rows(&samples),
        counts: counts(&samples, u64::from(runs), u64::from(clients)),
        disk,
        memory,
    })
}

fn rows(samples: &Samples) -> Vec<Row> {
    let running = Some((RUNNING, &samples.running));
    let rows = [
        Row::new(RUNNING, &samples.running, None),
        Row::new(PAUSED, &samples.paused, running),
        Row::new(HIBERNATED, &samples.hibernated, running),
        Row::new("– of it VMM spawn to guest's answer", &samples.restore, None),
        Row::new(HIBERNATE, &samples.hibernate, None),
        Row::new(RACE, &samples.race, running),
    ];
    rows.into_iter().flatten().collect()
}

fn counts(samples: &Samples, rounds: u64, clients: u64) -> Vec<Count> {
    let count = |name, count| Count { name, count };
    vec![
        count("races for a hibernated instance", rounds),
        count("racing clients, all races", rounds * clients),
        count("– answered", samples.answers),
        count("– reset, refused or cut", samples.failures),
        count("wakes, all races", samples.wakes),
    ]
}

impl Instance<'_> {
    async fn stats(&self) -> Result<InstanceStats, BenchError> {
        let stats = self.client.stats().await?.instances.into_iter().find(|stats| stats.id == self.id);
        stats.ok_or_else(|| BenchError::Failed("the instance is gone".to_owned()))
    }

    /// Hibernates and measures that, and returns when nothing of it goes on in the background: a saved VM is written
    /// to the disk afterwards.
    async fn hibernate(&self) -> Result<Duration, BenchError> {
        let took = timed::action(self.client, self.id.as_str(), Action::Hibernate).await?;
        let path = self.installation.layout().memory_dir(&self.id).join(SAVED_FILE);
        let since = Instant::now();
        while !durable(&path) {
            if since.elapsed() > DURABLE_DEADLINE {
                let why = format!("the saved VM is not on the disk after {DURABLE_DEADLINE:?}");
                return Err(BenchError::Failed(why));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(took)
    }

    /// What the hibernated instance takes of the host.
    async fn cost(&self) -> Result<(Vec<Disk>, Vec<Memory>), BenchError> {
        let processes = self.processes().await?;
        let resident_kib = processes.iter().filter_map(|&pid| host::resident_kib(pid)).sum();
        let stats = self.stats().await?;
        if stats.state != InstanceState::Hibernated {
            return Err(BenchError::Failed(format!("the instance is {} and not hibernated", stats.state)));
        }
        let disk = vec![
            Disk { name: "memory of the hibernated instance", disk_kib: stats.memory_image_bytes / 1024 },
            Disk { name: "root file system of the instance", disk_kib: stats.disk_bytes / 1024 },
        ];
        Ok((disk, vec![Memory { process: "processes of the hibernated instance", resident_kib }]))
    }

    /// The processes below the daemon once they had the time to end: it has this instance only.
    async fn processes(&self) -> Result<Vec<u32>, BenchError> {
        let daemon = self.installation.daemon_pid();
        let daemon = daemon.ok_or_else(|| BenchError::Failed("the daemon has ended".to_owned()))?;
        let since = Instant::now();
        loop {
            let processes = host::descendants(daemon);
            if processes.is_empty() || since.elapsed() > GONE_DEADLINE {
                return Ok(processes);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Fails unless the instance went on from its memory, since there were `before` such starts. Returns the time that
    /// it took.
    async fn woken(&self, before: u64) -> Result<Duration, BenchError> {
        let ms = instance::expect_start(self.client, self.id.as_str(), StartKind::Restore).await?;
        match self.stats().await?.starts.restore - before {
            1 => Ok(Duration::from_millis(ms)),
            more => Err(BenchError::Failed(format!("one connection woke the instance {more} times"))),
        }
    }
}

fn durable(path: &Path) -> bool {
    let saved = fs::read(path).ok().and_then(|text| serde_json::from_slice::<SavedVm>(&text).ok());
    saved.is_some_and(|saved| saved.durable)
}
