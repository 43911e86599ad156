//! `aegis doctor`: what VMs will use, what is wrong, and what to do about it. Works without the daemon; when it
//! runs, its own answers are shown where it has some.

mod host;
mod report;

use std::time::Duration;

use aegis_api::DaemonStatus;
use aegis_client::ClientError;
use aegis_config::{AcceleratorSetting, Asset, Home, Setting, Settings, host_memory_mib, locate};

use self::report::{Check, Report, SettingLine};
use super::Context;
use crate::error::CliError;
use crate::ui;

/// What VMs need, with labels.
const ASSETS: [(Asset, &str); 7] = [
    (Asset::Daemon, "aegisd"),
    (Asset::Worker, "Worker"),
    (Asset::Vmm, "VMM"),
    (Asset::Kernel, "Kernel"),
    (Asset::Initramfs, "Initramfs"),
    (Asset::BaseImage, "Base image"),
    (Asset::DiskTemplate, "Disk template"),
];

pub(crate) async fn run(context: &Context, json: bool) -> Result<u8, CliError> {
    let report = examine(context).await;
    if json {
        ui::print_json(&report)?;
    } else {
        ui::print(&report.to_text())?;
    }
    Ok(if report.ok { 0 } else { 1 })
}

async fn examine(context: &Context) -> Report {
    let home = &context.home;
    let mut checks = vec![
        Check::good("Version", env!("CARGO_PKG_VERSION")),
        Check::good("Platform", format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH)),
        Check::good("Home", home.root().display().to_string()),
    ];
    let (check, daemon) = daemon(context).await;
    checks.push(check);
    let settings = Settings::load(home);
    let wanted = settings.as_ref().map_or(AcceleratorSetting::Auto, |s| s.accelerator.value);
    let expected = host::accelerator(wanted);
    checks.push(match &daemon {
        Some(status) if status.accelerator.is_some() => decided(status, expected),
        _ => expected,
    });
    for (asset, label) in ASSETS {
        checks.push(check_asset(asset, label, home, daemon.as_ref()).await);
    }
    let worker = locate(Asset::Worker, None, home).ok();
    checks.push(host::confinement(worker.as_ref().map(|w| w.path.as_path())).await);
    checks.push(host::disk_space(home.root()));
    checks.extend(daemon.as_ref().and_then(router));
    if let Ok(settings) = &settings {
        let known = daemon.as_ref().and_then(|daemon| daemon.ram_budget_mb);
        let budget = known.or_else(|| settings.ram_budget.value.mib(host_memory_mib()));
        checks.extend(budget.map(|mib| Check::good("RAM budget", format!("{mib} MiB for all VMs together"))));
    }
    let settings = match settings {
        Ok(settings) => setting_lines(&settings),
        Err(error) => {
            checks.push(Check::bad("Settings", "cannot be used", error.to_string(), "correct the value"));
            Vec::new()
        }
    };
    Report::new(checks, settings)
}

async fn daemon(context: &Context) -> (Check, Option<DaemonStatus>) {
    match context.client.status().await {
        Ok(status) => {
            let text = format!("running (pid {}, live VMs: {})", status.pid, status.live_vms);
            let check = if status.version == env!("CARGO_PKG_VERSION") {
                Check::good("Daemon", text)
            } else {
                let problem = format!("it is version {}", status.version);
                Check::odd("Daemon", text, problem, "`aegis down`, then `aegis up`, starts this version")
            };
            (check, Some(status))
        }
        Err(ClientError::NotRunning { .. }) => (Check::good("Daemon", "not running"), None),
        Err(error) => {
            let error = CliError::from(error);
            let problem = [&[error.message().to_owned()], error.causes()].concat().join(": ");
            (
                Check::bad("Daemon", "does not answer", problem, "its log is `data/aegisd.log` in the home"),
                None,
            )
        }
    }
}

/// Ports of instances work without the router, so its absence is no error.
fn router(status: &DaemonStatus) -> Option<Check> {
    let router = status.router.as_ref()?;
    Some(match (router.address, &router.problem) {
        (Some(address), _) => Check::good("Router", format!("http://{address}")),
        (None, problem) => {
            let problem = problem.clone().unwrap_or_else(|| "it does not listen".to_owned());
            Check::odd("Router", "off", problem, "choose another address with `router_addr` in config.toml")
        }
    })
}

/// The daemon knows which accelerator it is; what we expected may come with advice.
fn decided(status: &DaemonStatus, expected: Check) -> Check {
    let name = status.accelerator.map(|a| a.to_string()).unwrap_or_default();
    match (&status.accelerator_reason, expected.into_hint()) {
        (Some(reason), Some(hint)) => Check::odd("Accelerator", name, reason.clone(), hint),
        (Some(reason), None) => Check::good("Accelerator", format!("{name} ({reason})")),
        (None, _) => Check::good("Accelerator", name),
    }
}

async fn check_asset(asset: Asset, label: &'static str, home: &Home, daemon: Option<&DaemonStatus>) -> Check {
    let reported = daemon.and_then(|d| d.assets.iter().find(|a| a.name == asset.name()));
    let found = locate(asset, None, home);
    let (path, origin) = match (reported.and_then(|r| r.path.clone()), &found) {
        // The daemon may have been started with other settings than ours.
        (Some(path), Ok(located)) if path == located.path => (path, located.origin.to_string()),
        (Some(path), _) => (path, "as the daemon says".to_owned()),
        (None, Ok(located)) => (located.path.clone(), located.origin.to_string()),
        (None, Err(error)) => return Check::bad(label, "not found", error.to_string(), error.hint.clone()),
    };
    let mut details = Vec::new();
    if asset == Asset::Vmm {
        match host::version_of(&path).await {
            Ok(version) => details.push(version),
            Err(problem) => {
                return Check::bad(label, path.display().to_string(), problem, "reinstall QEMU");
            }
        }
    } else if let Ok(meta) = path.metadata() {
        details.push(ui::size(meta.len()));
    }
    details.push(origin);
    let text = format!("{} ({})", path.display(), details.join(", "));
    match reported.and_then(|r| r.problem.clone()) {
        Some(problem) => Check::bad(label, text, problem, "replace the file"),
        None => Check::good(label, text),
    }
}

fn setting_lines(settings: &Settings) -> Vec<SettingLine> {
    let Settings {
        default_memory,
        default_disk,
        default_vcpus,
        default_image,
        pull,
        mirrors,
        ca_file,
        accelerator,
        boot_timeout,
        log,
        pause_after,
        hibernate_after,
        ram_budget,
        router_addr,
        key_store,
        templates,
        templates_max_mib,
        templates_max_age,
        log_max_mib,
        log_files,
    } = settings;
    let time = |name, setting: &Setting<Duration>| {
        SettingLine::new(name, ui::duration(setting.value), setting.source)
    };
    vec![
        SettingLine::new("default_memory_mb", default_memory.value.get(), default_memory.source),
        SettingLine::new("default_disk_mb", default_disk.value.get(), default_disk.source),
        SettingLine::new("default_cpus", default_vcpus.value.get(), default_vcpus.source),
        SettingLine::new("default_image", &default_image.value, default_image.source),
        SettingLine::new("images.pull", pull.value, pull.source),
        SettingLine::new("images.mirrors", &mirrors.value, mirrors.source),
        SettingLine::new(
            "images.ca_file",
            ca_file.value.as_ref().map_or_else(String::new, |path| path.display().to_string()),
            ca_file.source,
        ),
        SettingLine::new("accelerator", accelerator.value, accelerator.source),
        time("boot_timeout", boot_timeout),
        SettingLine::new("log", &log.value, log.source),
        time("pause_after", pause_after),
        time("hibernate_after", hibernate_after),
        SettingLine::new("ram_budget_mb", ram_budget.value, ram_budget.source),
        SettingLine::new("router_addr", router_addr.value, router_addr.source),
        SettingLine::new("secrets.key_store", key_store.value, key_store.source),
        SettingLine::new("templates", templates.value, templates.source),
        SettingLine::new("templates_max_mb", templates_max_mib.value, templates_max_mib.source),
        time("templates_max_age", templates_max_age),
        SettingLine::new("log_max_mb", log_max_mib.value, log_max_mib.source),
        SettingLine::new("log_files", log_files.value, log_files.source),
    ]
}
