//! `aegis bench fs`: a directory of the host beside the guest's own disk, in the same guest with the same program.
//!
//! The directory is new and in the temporary directory (`TMPDIR`). What its file system needs is part of the figure, and has a
//! row of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use aegis_api::CreateInstance;
use aegis_config::{Asset, locate};
use aegis_types::Accelerator;

use crate::installation::Installation;
use crate::report::{Report, Row};
use crate::stats::Sample;
use crate::{BenchError, guest, host, instance};

const FILES: u32 = 2000;
const FILE_BYTES: usize = 2048;
const FILES_PER_DIRECTORY: u32 = 100;
const MEGABYTES: u32 = 100;
/// Prints one line for each figure: its name and milliseconds.
const PROGRAM: &str = include_str!("../guest/fs.py");

/// Name in the program, and those of the two rows.
const FIGURES: [(&str, &str, &str); 7] = [
    ("create", "disk, 2000 small files made", "workspace, 2000 small files made"),
    ("walk-cold", "disk, their metadata read", "workspace, their metadata read"),
    ("walk-warm", "disk, the same again", "workspace, the same again"),
    ("read-cold", "disk, their content read", "workspace, their content read"),
    ("remove", "disk, all of it removed", "workspace, all of it removed"),
    ("write", "disk, 100 MiB written and synced", "workspace, 100 MiB written and synced"),
    ("read", "disk, 100 MiB read", "workspace, 100 MiB read"),
];

/// Measures every figure `runs` times, turn about.
pub(crate) async fn measure(runs: u32, kernel: Option<&Path>) -> Result<Report, BenchError> {
    let workspace = tempfile::tempdir().map_err(BenchError::io("make a directory"))?;
    // Nothing else may run beside it.
    let installation = Installation::start(kernel, &[("AEGIS_TEMPLATES", "off")]).await?;
    let result = measure_on(&installation, workspace.path(), runs).await;
    installation.stop().await?;
    result
}

async fn measure_on(installation: &Installation, workspace: &Path, runs: u32) -> Result<Report, BenchError> {
    let client = &installation.client;
    let path = fs::canonicalize(workspace).map_err(BenchError::io("find the directory"))?;
    let request = CreateInstance {
        workspace: Some(path.to_string_lossy().into_owned()),
        never_pause: true,
        ..instance::sleeper("bench")?
    };
    let id = instance::create(client, &request).await?;
    let mut direct = Sample::default();
    for turn in 0..runs {
        let began = Instant::now();
        make_files(&path.join(format!("host{turn}"))).map_err(BenchError::io("make files"))?;
        direct.add(began.elapsed());
    }
    let numbers = [FILES, MEGABYTES, runs].map(|number| number.to_string());
    let command: Vec<&str> =
        ["python3", "-SE", "-c", PROGRAM].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let (_, output) = guest::exec(client, &id, &command).await?;
    let (_, release) = guest::exec(client, &id, &["uname", "-r"]).await?;
    let output = String::from_utf8_lossy(&output);
    let mut figures: BTreeMap<&str, Sample> = BTreeMap::new();
    for line in output.lines() {
        let figure = line.split_once(' ').and_then(|(name, ms)| Some((name, ms.parse::<f64>().ok()?)));
        let Some((name, ms)) = figure else {
            return Err(BenchError::Failed(format!("the guest failed: {output}")));
        };
        figures.entry(name).or_default().add(Duration::from_secs_f64(ms / 1e3));
    }
    let none = Sample::default();
    let of = |place: &str, figure: &str| figures.get(format!("{place}-{figure}").as_str()).unwrap_or(&none);
    let rows = FIGURES.iter().flat_map(|(figure, disk, shared)| {
        let floor = of("disk", figure);
        [Row::new(disk, floor, None), Row::new(shared, of("workspace", figure), Some((*disk, floor)))]
    });
    let direct = Row::new("host, 2000 small files made in that directory", &direct, None);
    let vmm = locate(Asset::Vmm, None, installation.layout())?.path;
    let accelerator = client.status().await?.accelerator.unwrap_or(Accelerator::Tcg);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: host::machine(accelerator, &vmm, String::from_utf8_lossy(&release).trim().to_owned()),
        rows: rows.chain([direct]).flatten().collect(),
        counts: Vec::new(),
        disk: Vec::new(),
        memory: Vec::new(),
    })
}

/// What the program in the guest makes.
fn make_files(tree: &Path) -> io::Result<()> {
    for number in 0..FILES {
        let directory = tree.join(format!("d{}", number / FILES_PER_DIRECTORY));
        if number % FILES_PER_DIRECTORY == 0 {
            fs::create_dir_all(&directory)?;
        }
        fs::write(directory.join(format!("f{number}")), [b'x'; FILE_BYTES])?;
    }
    Ok(())
}
