//! A worker in this process, and a client of it.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use aegis_link::rpc::{CallError, Client, Notification};
use aegis_proto::worker::{
    CONTROL_SOCKET, Confinement, EXIT_FILE, EXITED, Exited, Phase, Ready, STATUS, STOP, STREAMS_SOCKET, Stop,
    WAIT_READY, WorkerConfig, WorkerStatus,
};
use aegis_types::{Accelerator, InstanceId, Mib, Ram, Vcpus, VmId, VmSpec};
use aegis_vmm_worker::{Outside, run_until};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::fake::{FakeVmm, Guest};

/// Far above what a busy machine needs: a test that gets here hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Worker {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) vmm: FakeVmm,
    pub(crate) client: Client,
    notifications: mpsc::Receiver<Notification>,
    pub(crate) terminate: Option<oneshot::Sender<()>>,
    running: JoinHandle<Exited>,
}

pub(crate) fn config(dir: &Path, boot_timeout_ms: u64) -> WorkerConfig {
    WorkerConfig {
        instance_id: InstanceId::from_unix_nanos(1),
        vm: VmSpec {
            vm_id: VmId::from_random(1),
            vmm_path: "/fake".into(),
            accelerator: Accelerator::Tcg,
            kernel: "/fake".into(),
            initramfs: "/fake".into(),
            memory: Mib::DEFAULT,
            vcpus: Vcpus::DEFAULT,
            disks: Vec::new(),
            ram: Ram::default(),
            runtime_dir: dir.to_owned(),
        },
        hostname: "web".to_owned(),
        machine_id: "0".repeat(32),
        boot_timeout_ms,
        boot_attempts: 2,
        restore: None,
        machine: String::new(),
        template: false,
        net: None,
        mounts: Vec::new(),
    }
}

impl Worker {
    pub(crate) async fn start(guests: impl Into<VecDeque<Guest>>) -> Self {
        Self::start_with_timeout(guests, 30_000).await
    }

    pub(crate) async fn start_with_timeout(guests: impl Into<VecDeque<Guest>>, boot_timeout_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), boot_timeout_ms);
        Self::start_with(dir, config, FakeVmm::new(guests)).await
    }

    /// `config` is for this directory.
    pub(crate) async fn start_with(dir: tempfile::TempDir, config: WorkerConfig, vmm: FakeVmm) -> Self {
        let control = UnixListener::bind(dir.path().join(CONTROL_SOCKET)).unwrap();
        let streams = UnixListener::bind(dir.path().join(STREAMS_SOCKET)).unwrap();
        let confinement = Confinement { landlock_abi: 0, seccomp: false, no_new_privs: false, cgroup: None };
        let (terminate, terminated) = oneshot::channel();
        let terminated = async {
            let _ = terminated.await;
        };
        let backend = std::sync::Arc::new(vmm.clone());
        let running = tokio::spawn(run_until(
            config,
            backend,
            Outside::default(),
            control,
            streams,
            confinement,
            terminated,
        ));
        let stream = UnixStream::connect(dir.path().join(CONTROL_SOCKET)).await.unwrap();
        let (client, notifications) = Client::new(stream);
        Self { dir, vmm, client, notifications, terminate: Some(terminate), running }
    }

    pub(crate) async fn ready(&self) -> Ready {
        self.client.call(WAIT_READY, &()).await.unwrap()
    }

    pub(crate) async fn call(&self, method: &str) -> Result<(), CallError> {
        self.client.call(method, &()).await
    }

    pub(crate) async fn phase(&self) -> Phase {
        let status: WorkerStatus = self.client.call(STATUS, &()).await.unwrap();
        status.phase
    }

    pub(crate) async fn stop(&self, grace_ms: u64) -> Result<(), CallError> {
        self.client.call(STOP, &Stop { grace_ms }).await
    }

    /// Opens a stream and gives the worker's answer to the preface.
    pub(crate) async fn stream(&self, preface: &str) -> (BufReader<UnixStream>, String) {
        let mut stream =
            BufReader::new(UnixStream::connect(self.dir.path().join(STREAMS_SOCKET)).await.unwrap());
        stream.write_all(preface.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).await.unwrap();
        (stream, answer)
    }

    /// The end, as told by the future, the notification and the note, which agree.
    pub(crate) async fn ended(self) -> Exited {
        self.ended_in().await.1
    }

    /// The same, with what is left in its directory.
    pub(crate) async fn ended_in(mut self) -> (tempfile::TempDir, Exited) {
        let exited = tokio::time::timeout(PATIENCE, &mut self.running).await.unwrap().unwrap();
        let (method, params) = self.notifications.recv().await.unwrap();
        assert_eq!(method, EXITED);
        assert_eq!(serde_json::from_value::<Exited>(params).unwrap(), exited);
        let note = std::fs::read(self.dir.path().join(EXIT_FILE)).unwrap();
        assert_eq!(serde_json::from_slice::<Exited>(&note).unwrap(), exited);
        assert_eq!(self.vmm.alive(), 0, "a VM was left behind");
        (self.dir, exited)
    }
}
