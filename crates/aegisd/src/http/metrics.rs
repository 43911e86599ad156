//! The same numbers for Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::fmt::Write as _;

use aegis_api::{DaemonStats, InstanceStats};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::stats::collect;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The same numbers in the text format of Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(app): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text(&collect(&app).await)).into_response()
}

/// One value of each instance.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&InstanceStats) -> f64,
}

const METRICS: &[Metric] = &[
    Metric {
        name: "aegis_instance_wakes_total",
        kind: "counter",
        help: "Times that a use had to wait for the VM",
        value: |i| i.wakes as f64,
    },
    Metric {
        name: "aegis_instance_cpu_seconds_total",
        kind: "counter",
        help: "Processor time of the VM",
        value: |i| i.cpu_ms as f64 / 1e3,
    },
    Metric {
        name: "aegis_instance_resident_bytes",
        kind: "gauge",
        help: "Host memory of the VM",
        value: |i| i.rss_bytes as f64,
    },
    Metric {
        name: "aegis_instance_disk_bytes",
        kind: "gauge",
        help: "Host disk space of the root file system",
        value: |i| i.disk_bytes as f64,
    },
    Metric {
        name: "aegis_instance_memory_image_bytes",
        kind: "gauge",
        help: "Host disk space of the memory",
        value: |i| i.memory_image_bytes as f64,
    },
    Metric {
        name: "aegis_instance_connections",
        kind: "gauge",
        help: "Open connections",
        value: |i| f64::from(i.active_connections),
    },
    Metric {
        name: "aegis_instance_execs",
        kind: "gauge",
        help: "Exec commands in flight",
        value: |i| f64::from(i.active_execs),
    },
];

fn text(stats: &DaemonStats) -> String {
    let mut page = Page(String::new());
    page.begin("aegis_memory_budget_bytes", "gauge", "Memory that all VMs may have; 0 without a bound");
    page.sample("aegis_memory_budget_bytes", "", (stats.ram_budget_mb << 20) as f64);
    page.begin("aegis_memory_used_bytes", "gauge", "Memory that the live VMs were given");
    page.sample("aegis_memory_used_bytes", "", (stats.ram_used_mb << 20) as f64);
    page.begin("aegis_instance_state", "gauge", "1 for the state that the instance is in");
    for instance in &stats.instances {
        page.sample("aegis_instance_state", &labels(instance, &[("state", instance.state.as_str())]), 1.0);
    }
    page.begin("aegis_instance_starts_total", "counter", "Starts by what they began with");
    for instance in &stats.instances {
        let starts = instance.starts;
        for (kind, count) in
            [("cold", starts.cold), ("template", starts.template), ("restore", starts.restore)]
        {
            page.sample("aegis_instance_starts_total", &labels(instance, &[("kind", kind)]), count as f64);
        }
    }
    page.begin("aegis_instance_last_start_seconds", "gauge", "Parts of the last start");
    for instance in &stats.instances {
        let Some(start) = instance.last_start else { continue };
        for (phase, ms) in [("vmm", start.vmm_ms), ("load", start.load_ms), ("guest", start.guest_ms)] {
            let labels = labels(instance, &[("kind", start.kind.as_str()), ("phase", phase)]);
            page.sample("aegis_instance_last_start_seconds", &labels, ms as f64 / 1e3);
        }
    }
    for metric in METRICS {
        page.begin(metric.name, metric.kind, metric.help);
        for instance in &stats.instances {
            page.sample(metric.name, &labels(instance, &[]), (metric.value)(instance));
        }
    }
    page.0
}

struct Page(String);

impl Page {
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        self.line(format_args!("{name}{labels} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a String takes everything");
    }
}

/// Names and ids have no character that would have to be escaped.
fn labels(instance: &InstanceStats, more: &[(&str, &str)]) -> String {
    let name = instance.handle.as_ref().map_or("", |handle| handle.as_str());
    let more: String = more.iter().map(|(key, value)| format!(",{key}=\"{value}\"")).collect();
    format!("{{id=\"{}\",name=\"{name}\"{more}}}", instance.id)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use aegis_api::StartCounts;
    use aegis_types::{Handle, InstanceId, InstanceState};

    use super::*;

    #[test]
    fn every_metric_has_a_type_before_its_samples() {
        let instance = InstanceStats {
            id: InstanceId::from_unix_nanos(7),
            handle: Some(Handle::parse("web").unwrap()),
            state: InstanceState::Hibernated,
            wakes: 3,
            starts: StartCounts { cold: 1, template: 0, restore: 2 },
            last_start: None,
            cpu_ms: 1500,
            rss_bytes: 0,
            disk_bytes: 4096,
            memory_image_bytes: 8192,
            active_connections: 0,
            active_execs: 0,
        };
        let text = text(&DaemonStats { ram_budget_mb: 1, ram_used_mb: 0, instances: vec![instance] });
        for sample in [
            "aegis_memory_budget_bytes 1048576\n",
            "aegis_instance_state{id=\"inst-7\",name=\"web\",state=\"hibernated\"} 1\n",
            "aegis_instance_starts_total{id=\"inst-7\",name=\"web\",kind=\"restore\"} 2\n",
            "aegis_instance_cpu_seconds_total{id=\"inst-7\",name=\"web\"} 1.5\n",
        ] {
            assert!(text.contains(sample), "{sample} in {text}");
        }
        let mut typed = std::collections::HashSet::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => assert!(typed.insert(rest.split(' ').next().unwrap().to_owned())),
                None if line.starts_with('#') => {}
                None => assert!(typed.contains(line.split(['{', ' ']).next().unwrap()), "{line}"),
            }
        }
    }
}
