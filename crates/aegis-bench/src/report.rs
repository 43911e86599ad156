//! The report, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::stats::{Sample, Summary};

/// All figures of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) counts: Vec<Count>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) disk: Vec<Disk>,
    pub(crate) memory: Vec<Memory>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) host_kernel: String,
    pub(crate) guest_kernel: String,
    pub(crate) accelerator: String,
}

/// One figure, in milliseconds, and the floor that it is compared with.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) ms: Summary,
    /// Name of the row that is the floor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) floor: Option<&'static str>,
    /// Median divided by the floor's median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<f64>,
}

impl Row {
    /// `None` for an empty sample. The ratio is to the median of the floor.
    pub(crate) fn new(
        name: &'static str,
        sample: &Sample,
        floor: Option<(&'static str, &Sample)>,
    ) -> Option<Self> {
        let ms = sample.summary()?;
        let ratio = floor.and_then(|(_, floor)| Some(ms.median / floor.summary()?.median));
        Some(Self { name, ms, floor: floor.map(|(name, _)| name), ratio })
    }
}

/// A number of something.
#[derive(Debug, Serialize)]
pub(crate) struct Count {
    pub(crate) name: &'static str,
    pub(crate) count: u64,
}

/// Space on the disk of the host.
#[derive(Debug, Serialize)]
pub(crate) struct Disk {
    pub(crate) name: &'static str,
    pub(crate) disk_kib: u64,
}

/// Resident memory of a process.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) process: &'static str,
    pub(crate) resident_kib: u64,
}

impl Report {
    pub(crate) fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report serialises");
        text.push('\n');
        text
    }

    pub(crate) fn to_table(&self) -> String {
        let m = &self.machine;
        let mut text = String::new();
        let mut line =
            |args: std::fmt::Arguments<'_>| writeln!(text, "{args}").expect("a String takes everything");
        line(format_args!(
            "{} · {} cores · host {} · guest {} · {}",
            m.cpu, m.cores, m.host_kernel, m.guest_kernel, m.accelerator
        ));
        line(format_args!(
            "{:<44} {:>9} {:>9} {:>9} {:>9} {:>4}  {:>6}",
            "milliseconds", "median", "p95", "min", "max", "n", "ratio"
        ));
        for row in &self.rows {
            let versus = match (row.ratio, row.floor) {
                (Some(ratio), Some(floor)) => format!("{ratio:>6.2} × {floor}"),
                _ => "     –".to_owned(),
            };
            let s = row.ms;
            line(format_args!(
                "{:<44} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>4}  {versus}",
                row.name, s.median, s.p95, s.min, s.max, s.count
            ));
        }
        for count in &self.counts {
            line(format_args!("{:<44} {:>9}", count.name, count.count));
        }
        for disk in &self.disk {
            line(format_args!("{:<44} {:>9.1} MiB on disk", disk.name, mib(disk.disk_kib)));
        }
        for memory in &self.memory {
            line(format_args!("{:<44} {:>9.1} MiB resident", memory.process, mib(memory.resident_kib)));
        }
        text
    }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
