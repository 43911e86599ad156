//! The report, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::stats::Summary;

/// All figures of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
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
            "{:<34} {:>9} {:>9} {:>9} {:>4}  {:>6}",
            "milliseconds", "median", "min", "max", "n", "ratio"
        ));
        for row in &self.rows {
            let versus = match (row.ratio, row.floor) {
                (Some(ratio), Some(floor)) => format!("{ratio:>6.2} × {floor}"),
                _ => "     –".to_owned(),
            };
            let s = row.ms;
            line(format_args!(
                "{:<34} {:>9.2} {:>9.2} {:>9.2} {:>4}  {versus}",
                row.name, s.median, s.min, s.max, s.count
            ));
        }
        for memory in &self.memory {
            let mib = memory.resident_kib as f64 / 1024.0;
            line(format_args!("{:<34} {mib:>9.1} MiB resident", memory.process));
        }
        text
    }
}
