#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use aegis_config::{AcceleratorSetting, Environment, Home, Setting};
use aegis_lifecycle::ports::Launcher as _;
use aegis_lifecycle::record::InstanceSpec;
use aegis_link::rpc::{Handler, serve};
use aegis_proto::jsonrpc::RpcError;
use aegis_proto::worker::{CONSOLE_FILE, EXIT_FILE, STREAMS_SOCKET, WorkerConfig};
use aegis_types::{
    Accelerator, DiskSize, ImageName, Mib, Mount, MountPoint, Policy, Ram, Vcpus, VmId, VmSpec,
};
use tokio::net::UnixListener;

use super::super::{process, spawn};
use super::*;
use crate::accel::Accel;
use crate::assets::{AssetFlags, Assets};
use crate::digests::Digests;
use crate::images::Images;
use crate::launcher::machine::Machines;
use crate::networks::Networks;
use crate::templates::TemplateOptions;
use crate::workspaces::Workspaces;

struct Fixture {
    _dir: tempfile::TempDir,
    home: Home,
    launcher: Launcher,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::resolve(Some(dir.path().join("home"))).unwrap();
    home.ensure().unwrap();
    fs::create_dir(home.logs()).unwrap();
    let assets = Arc::new(Assets::new(home.clone(), AssetFlags::default()));
    let digests = Arc::new(Digests::open(&home));
    let images = Arc::new(Images::open(home.clone(), Arc::clone(&assets), Arc::clone(&digests)).unwrap());
    let setting = Setting::default_value(AcceleratorSetting::Fixed(Accelerator::Tcg));
    let accel = Arc::new(Accel::new(home.clone(), Arc::clone(&assets), &setting));
    let boot_timeout = Duration::from_secs(1);
    let networks = Arc::new(Networks::new(home.clone(), &Environment::from_fn(|_| None)));
    let workspaces = Arc::new(Workspaces::new(home.clone()));
    let default_disk = DiskSize::DEFAULT;
    let machines = Machines { default_disk, home: home.clone(), assets, images, digests, boot_timeout };
    let launcher = Launcher::new(machines, accel, networks, workspaces, TemplateOptions::default());
    Fixture { _dir: dir, home, launcher }
}

fn id(n: u64) -> InstanceId {
    InstanceId::from_unix_nanos(n)
}

fn vm() -> VmId {
    VmId::from_random(7)
}

/// A process that takes the place of a worker.
fn stand_in() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// A runtime directory that names this process.
fn leave(home: &Home, id: &InstanceId, pid: u32, start_ticks: u64) -> std::path::PathBuf {
    let dir = home.run_dir(id);
    files::make_dir(&dir).unwrap();
    let identity = WorkerIdentity { pid, start_ticks, vm_id: vm() };
    fs::write(dir.join(IDENTITY_FILE), serde_json::to_vec(&identity).unwrap()).unwrap();
    fs::write(dir.join(CONSOLE_FILE), "last words").unwrap();
    dir
}

fn has_ended(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_some()
}

#[tokio::test]
async fn a_live_worker_is_adopted_and_its_death_noticed() {
    let f = fixture();
    let mut child = stand_in();
    let dir = leave(&f.home, &id(1), child.id(), process::start_ticks(child.id()).unwrap());
    let listener = UnixListener::bind(dir.join(CONTROL_SOCKET)).unwrap();
    let Adoption::Alive { vm: adopted, worker } = f.launcher.adopt(&id(1)).await else { panic!("alive") };
    assert_eq!(adopted, vm());
    child.kill().unwrap();
    child.wait().unwrap();
    let exited = worker.exited().await;
    assert_eq!(exited.reason, ExitReason::VmmDied);
    drop(listener);
    f.launcher.clean_up(&id(1)).await;
    f.launcher.clean_up(&id(1)).await;
    assert!(!dir.exists());
    assert_eq!(fs::read_to_string(f.home.logs().join("inst-1.console.log")).unwrap(), "last words");
}

#[tokio::test]
async fn a_worker_that_refuses_connections_is_killed() {
    let f = fixture();
    let mut child = stand_in();
    let dir = leave(&f.home, &id(1), child.id(), process::start_ticks(child.id()).unwrap());
    let Adoption::Gone(Some(exited)) = f.launcher.adopt(&id(1)).await else { panic!("gone") };
    assert!(exited.message.contains("did not accept"), "{}", exited.message);
    assert!(has_ended(&mut child) && !dir.exists());
}

#[tokio::test]
async fn a_dead_worker_reports_by_its_note_and_a_stranger_with_its_pid_is_left_alone() {
    let f = fixture();
    let mut stranger = stand_in();
    let dir = leave(&f.home, &id(1), stranger.id(), process::start_ticks(stranger.id()).unwrap() - 1);
    let note = Exited { reason: ExitReason::GuestShutdown, message: "off".to_owned() };
    fs::write(dir.join(EXIT_FILE), serde_json::to_vec(&note).unwrap()).unwrap();
    let Adoption::Gone(Some(exited)) = f.launcher.adopt(&id(1)).await else { panic!("gone") };
    assert_eq!(exited, note);
    assert!(!dir.exists() && !has_ended(&mut stranger));
    assert!(matches!(f.launcher.adopt(&id(1)).await, Adoption::None));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn what_belongs_to_no_instance_is_ended_and_removed() {
    let f = fixture();
    let (mut orphan, mut kept) = (stand_in(), stand_in());
    let orphan_dir = leave(&f.home, &id(1), orphan.id(), process::start_ticks(orphan.id()).unwrap());
    let kept_dir = leave(&f.home, &id(2), kept.id(), process::start_ticks(kept.id()).unwrap());
    for n in [1, 2] {
        files::make_dir(&f.home.instance_dir(&id(n))).unwrap();
    }
    fs::write(f.home.run().join("litter"), "").unwrap();
    f.launcher.reap_orphans(&[id(2)]).await.unwrap();
    assert!(has_ended(&mut orphan) && !has_ended(&mut kept));
    assert!(!orphan_dir.exists() && kept_dir.exists());
    assert!(!f.home.instance_dir(&id(1)).exists() && f.home.instance_dir(&id(2)).exists());
    assert!(!f.home.run().join("litter").exists());
    kept.kill().unwrap();
    kept.wait().unwrap();
}

/// Remembers what it was asked, as `method parameters`.
struct Asked(Mutex<Vec<String>>);

#[async_trait::async_trait]
impl Handler for Asked {
    async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        self.0.lock().unwrap().push(format!("{method} {params}"));
        Ok(Value::Null)
    }
}

#[tokio::test]
async fn a_worker_that_was_never_named_is_stopped_through_its_socket() {
    let f = fixture();
    let dir = f.home.run_dir(&id(1));
    files::make_dir(&dir).unwrap();
    let listener = UnixListener::bind(dir.join(CONTROL_SOCKET)).unwrap();
    let asked = Arc::new(Asked(Mutex::default()));
    let handler = Arc::clone(&asked);
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream, handler, None).await.unwrap();
    });
    assert!(matches!(f.launcher.adopt(&id(1)).await, Adoption::Gone(None)));
    server.await.unwrap();
    assert_eq!(*asked.0.lock().unwrap(), ["status null", r#"stop {"grace_ms":0}"#]);
    assert!(!dir.exists());
}

/// Says who it is when it is asked something, as a worker that was still starting does.
struct Introduces(std::path::PathBuf, WorkerIdentity);

#[async_trait::async_trait]
impl Handler for Introduces {
    async fn call(&self, method: &str, _: Value) -> Result<Value, RpcError> {
        assert_eq!(method, STATUS);
        fs::write(self.0.join(IDENTITY_FILE), serde_json::to_vec(&self.1).unwrap()).unwrap();
        Ok(Value::Null)
    }
}

#[tokio::test]
async fn a_worker_that_still_starts_is_waited_for_and_adopted() {
    let f = fixture();
    let dir = f.home.run_dir(&id(1));
    files::make_dir(&dir).unwrap();
    let mut child = stand_in();
    let start_ticks = process::start_ticks(child.id()).unwrap();
    let identity = WorkerIdentity { pid: child.id(), start_ticks, vm_id: vm() };
    let listener = UnixListener::bind(dir.join(CONTROL_SOCKET)).unwrap();
    let handler = Arc::new(Introduces(dir.clone(), identity));
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream, handler, None).await.unwrap();
        listener
    });
    let Adoption::Alive { vm: adopted, .. } = f.launcher.adopt(&id(1)).await else { panic!("alive") };
    assert_eq!(adopted, vm());
    assert!(!has_ended(&mut child));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(server.await.unwrap());
}

#[tokio::test]
async fn removing_an_instance_removes_every_file_and_is_idempotent() {
    let f = fixture();
    let run_dir = leave(&f.home, &id(1), 1, 0);
    files::make_dir(&f.home.instance_dir(&id(1))).unwrap();
    fs::write(f.home.logs().join("inst-1.console.log"), "").unwrap();
    let own = f.home.workspaces().join("inst-1");
    fs::create_dir_all(own.join("closed")).unwrap();
    fs::write(own.join("closed/file"), "").unwrap();
    fs::set_permissions(own.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
    let mounts = vec![Mount { host: own.clone(), guest: MountPoint::workspace(), read_only: false }];
    let spec = InstanceSpec {
        id: id(1),
        handle: None,
        image: ImageName::parse("base").unwrap(),
        command: vec!["true".to_owned()],
        env: std::collections::BTreeMap::new(),
        workdir: None,
        user: None,
        tty: false,
        stdin: false,
        oci_defaults: false,
        memory: Mib::DEFAULT,
        disk: DiskSize::DEFAULT,
        vcpus: Vcpus::DEFAULT,
        policy: Policy::default(),
        parent: None,
        mounts,
        auto_workspace: true,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    };
    f.launcher.remove(&spec).await.unwrap();
    f.launcher.remove(&spec).await.unwrap();
    assert!(!own.exists());
    assert!(!run_dir.exists() && !f.home.instance_dir(&id(1)).exists());
    assert_eq!(fs::read_dir(f.home.logs()).unwrap().count(), 0);
}

#[test]
fn a_worker_gets_its_sockets_and_none_of_our_variables() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let program = dir.path().join("worker");
    let script = "#!/bin/sh\nreadlink /proc/$$/fd/3 /proc/$$/fd/4 /proc/$$/fd/0 /proc/$$/fd/5\necho home=$HOME cwd=$PWD config=$1\n";
    let source = dir.path().join("script");
    fs::write(&source, script).unwrap();
    // By another process: a program that we had open for writing could not be started while another test forks.
    assert!(
        Command::new("install").args(["-m", "700"]).args([&source, &program]).status().unwrap().success()
    );
    let vm = VmSpec {
        vm_id: vm(),
        vmm_path: "/vmm".into(),
        accelerator: Accelerator::Tcg,
        kernel: "/kernel".into(),
        initramfs: "/initramfs".into(),
        memory: Mib::DEFAULT,
        vcpus: Vcpus::DEFAULT,
        disks: Vec::new(),
        ram: Ram::default(),
        runtime_dir: run_dir.clone(),
    };
    let config = WorkerConfig {
        instance_id: id(1),
        vm,
        hostname: "h".to_owned(),
        machine_id: "0".repeat(32),
        boot_timeout_ms: 1,
        boot_attempts: 1,
        restore: None,
        machine: String::new(),
        template: false,
        net: None,
        mounts: Vec::new(),
    };
    let memory = fs::File::open(&source).unwrap();
    let mut child = spawn::spawn(&program, &config, Some(&memory)).unwrap();
    assert!(child.wait().unwrap().success());
    let log = fs::read_to_string(run_dir.join(spawn::WORKER_LOG)).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert!(
        lines[0].starts_with("socket:") && lines[1].starts_with("socket:") && lines[0] != lines[1],
        "{log}"
    );
    let config_path = run_dir.join("config.json");
    let memory_path = source.display().to_string();
    assert_eq!(
        lines[2..],
        ["/dev/null".to_owned(), memory_path, format!("home= cwd=/ config={}", config_path.display())]
    );
    for name in [CONTROL_SOCKET, STREAMS_SOCKET, "config.json", spawn::WORKER_LOG] {
        let mode = fs::metadata(run_dir.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let read: WorkerConfig = serde_json::from_slice(&fs::read(config_path).unwrap()).unwrap();
    assert_eq!(read, config);
    let missing = spawn::spawn(&dir.path().join("nothing"), &config, None).unwrap_err();
    assert!(missing.to_string().starts_with("cannot start "), "{missing}");
}
