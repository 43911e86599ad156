//! Which accelerator VMs get. Decided once per daemon; where only a trial boot can tell, its verdict is kept on disk
//! for as long as host boot, kernel and VMM stay the same.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use aegis_config::{AcceleratorSetting, Asset, Home, NotFound, Setting};
use aegis_proto::worker::{CONFIG_FILE, WorkerConfig};
use aegis_types::{Accelerator, InstanceId, Mib, Ram, Vcpus, VmId, VmSpec};
use aegis_vmm_qemu::probe::{Cache, CacheKey, StaticVerdict, Verdict, static_verdict};
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::assets::Assets;
use crate::launcher::files;

/// Time for the trial; the worker gives up before it.
const TRIAL_DEADLINE: Duration = Duration::from_secs(30);

/// Decides and remembers.
#[derive(Debug)]
pub(crate) struct Accel {
    home: Home,
    assets: Arc<Assets>,
    verdict: OnceCell<Verdict>,
}

/// What `aegis-vmm-worker probe` prints.
#[derive(Deserialize)]
struct Report {
    ok: bool,
    #[serde(default)]
    message: String,
}

impl Accel {
    /// Decides at once where no trial is needed.
    pub(crate) fn new(home: Home, assets: Arc<Assets>, setting: &Setting<AcceleratorSetting>) -> Self {
        let verdict = match setting.value {
            AcceleratorSetting::Fixed(accelerator) => {
                Some(Verdict { accelerator, reason: format!("set by {}", setting.source) })
            }
            AcceleratorSetting::Auto => match static_verdict() {
                StaticVerdict::Known(verdict) => Some(verdict),
                StaticVerdict::TryKvm => None,
            },
        };
        Self { home, assets, verdict: OnceCell::new_with(verdict) }
    }

    /// The verdict, if there is one already.
    pub(crate) fn known(&self) -> Option<&Verdict> {
        self.verdict.get()
    }

    /// The verdict, by trial if need be.
    ///
    /// # Errors
    /// Something that a trial needs is missing.
    pub(crate) async fn decide(&self) -> Result<&Verdict, NotFound> {
        self.verdict.get_or_try_init(|| self.try_kvm()).await
    }

    async fn try_kvm(&self) -> Result<Verdict, NotFound> {
        let [worker, kernel, initramfs, vmm] =
            [Asset::Worker, Asset::Kernel, Asset::Initramfs, Asset::Vmm].map(|asset| self.assets.path(asset));
        let (worker, kernel, initramfs, vmm_path) = (worker?, kernel?, initramfs?, vmm?);
        let cache = Cache::new(&self.home.data());
        let key = CacheKey::new(&kernel, &vmm_path);
        if let Ok(key) = &key
            && let Some(verdict) = cache.load(key)
        {
            return Ok(verdict);
        }
        let runtime_dir = self.home.run().join("probe");
        let vm = VmSpec {
            vm_id: VmId::from_random(0),
            vmm_path,
            accelerator: Accelerator::Kvm,
            kernel,
            initramfs,
            memory: Mib::DEFAULT,
            vcpus: Vcpus::DEFAULT,
            disks: Vec::new(),
            ram: Ram::default(),
            runtime_dir: runtime_dir.clone(),
        };
        let config = WorkerConfig {
            instance_id: InstanceId::from_unix_nanos(0),
            vm,
            hostname: "probe".to_owned(),
            machine_id: "0".repeat(32),
            boot_timeout_ms: u64::try_from(TRIAL_DEADLINE.as_millis()).expect("a small constant"),
            boot_attempts: 1,
            restore: None,
            machine: String::new(),
            template: false,
            net: None,
            mounts: Vec::new(),
        };
        tracing::info!("trying whether KVM boots a VM");
        let verdict = judge(trial(&worker, &config).await);
        // A leftover is removed at the next start.
        let _ = files::remove_dir(&runtime_dir);
        if let Ok(key) = &key
            && let Err(error) = cache.store(key, &verdict)
        {
            tracing::warn!(%error, "cannot keep the verdict about KVM");
        }
        Ok(verdict)
    }
}

fn judge(report: io::Result<Report>) -> Verdict {
    match report {
        Ok(Report { ok: true, .. }) => Verdict::kvm(),
        Ok(Report { message, .. }) => Verdict::tcg(format!("a trial with KVM failed: {message}")),
        Err(e) => Verdict::tcg(format!("KVM could not be tried: {e}")),
    }
}

async fn trial(worker: &Path, config: &WorkerConfig) -> io::Result<Report> {
    let dir = &config.vm.runtime_dir;
    files::make_empty_dir(dir)?;
    let path = dir.join(CONFIG_FILE);
    files::write_atomically(&path, &serde_json::to_vec(config)?)?;
    let run = Command::new(worker)
        .arg("probe")
        .arg(&path)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(TRIAL_DEADLINE, run).await.map_err(|_| io::ErrorKind::TimedOut)??;
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout)?)
    } else {
        Err(io::Error::other(format!("{} ended with {}", worker.display(), output.status)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A worker that does what the script says, started by another process so that no test has it open for writing.
    fn worker(dir: &Path, script: &str) -> std::path::PathBuf {
        let (source, program) = (dir.join("script"), dir.join("worker"));
        std::fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
        let installed =
            std::process::Command::new("install").args(["-m", "700"]).args([&source, &program]).status();
        assert!(installed.unwrap().success());
        program
    }

    fn config(dir: &Path) -> WorkerConfig {
        let vm = VmSpec {
            vm_id: VmId::from_random(0),
            vmm_path: "/vmm".into(),
            accelerator: Accelerator::Kvm,
            kernel: "/kernel".into(),
            initramfs: "/initramfs".into(),
            memory: Mib::DEFAULT,
            vcpus: Vcpus::DEFAULT,
            disks: Vec::new(),
            ram: Ram::default(),
            runtime_dir: dir.join("probe"),
        };
        WorkerConfig {
            instance_id: InstanceId::from_unix_nanos(0),
            vm,
            hostname: "probe".to_owned(),
            machine_id: "0".repeat(32),
            boot_timeout_ms: 1,
            boot_attempts: 1,
            restore: None,
            machine: String::new(),
            template: false,
            net: None,
            mounts: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_trial_decides_and_one_that_cannot_be_made_decides_for_emulation() {
        for (script, accelerator, reason) in [
            (
                r#"test "$1" = probe && test -f "$2" && echo '{"ok":true,"message":"","boot_ms":5}'"#,
                Accelerator::Kvm,
                "booted",
            ),
            (r#"echo '{"ok":false,"message":"it hung","boot_ms":0}'"#, Accelerator::Tcg, "failed: it hung"),
            ("exit 3", Accelerator::Tcg, "could not be tried"),
            ("echo nonsense", Accelerator::Tcg, "could not be tried"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let verdict = judge(trial(&worker(dir.path(), script), &config(dir.path())).await);
            assert_eq!(verdict.accelerator, accelerator, "{script}: {verdict:?}");
            assert!(verdict.reason.contains(reason), "{verdict:?}");
        }
    }
}
