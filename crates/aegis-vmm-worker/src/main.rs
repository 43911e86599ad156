//! `aegis-vmm-worker <config.json>`: runs the VM of a configuration, on inherited listening sockets.
//! `aegis-vmm-worker probe <config.json>`: boots it once and prints whether that worked, as one line of JSON.
//! `aegis-vmm-worker confinement`: prints how well a worker can shut itself in on this host, as one line of JSON.
//!
//! Meant to be started by the daemon only. Its log goes to standard error.
#![deny(unsafe_code)]

mod sys;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use aegis_proto::worker::{CONTROL_FD, Confinement, STREAMS_FD, TEMPLATE_FD, WorkerConfig};
use aegis_types::{Accelerator, Mib, NetMode, Ram, Vcpus, VmId, VmSpec};
use aegis_vmm_qemu::Qemu;
use aegis_vmm_worker::{MountThread, NetThread, Outside, confine, probe, run_until};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Instrument as _;

const USAGE: &str = "usage: aegis-vmm-worker [probe] <config.json> | confinement";

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    // That library writes down what it cannot read, which a guest may choose: a megabyte at a time.
    let filter = tracing_subscriber::EnvFilter::new("info,fuse_backend_rs=off");
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let outcome = match args.as_slice() {
        [command, config] if command == "probe" => probe_once(Path::new(config)),
        [command] if command == "confinement" => print_confinement(),
        [config] => work(Path::new(config)),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn work(config: &Path) -> Result<(), Failure> {
    let control = sys::take_listener(CONTROL_FD).map_err(|e| format!("control socket: {e}"))?;
    let streams = sys::take_listener(STREAMS_FD).map_err(|e| format!("stream socket: {e}"))?;
    let qemu = Qemu::new();
    let config = read_config(config)?;
    let qemu = match config.vm.ram {
        Ram::Template => match sys::take_sealed_memory(TEMPLATE_FD) {
            Ok(memory) => qemu.with_template(memory),
            Err(e) => {
                // It is then said again by what needs it.
                tracing::warn!("no memory of a template: {e}");
                qemu
            }
        },
        Ram::Anonymous | Ram::File { .. } => qemu,
    };
    // A signal to the daemon's process group is not meant for us. Fails for a group leader, who needs none.
    let _ = rustix::process::setsid();
    let online = config.net.clone().filter(|net| net.policy.mode != NetMode::None);
    let (confinement, scope) =
        confine::apply(&config.vm, config.restore.as_ref(), online.as_ref(), &config.mounts);
    // Each thread keeps what it is for; this one, which starts the VMM, has no part in it.
    let mounts = match config.mounts.as_slice() {
        [] => None,
        mounts => {
            Some(MountThread::start(mounts.to_vec()).map_err(|e| format!("thread of the mounts: {e}"))?)
        }
    };
    if mounts.is_some() {
        confine::leave_mounts(&config.vm, config.restore.as_ref(), online.as_ref(), scope.as_ref());
    }
    let net = match online {
        Some(setup) => {
            let net = NetThread::start(setup).map_err(|e| format!("thread of the network: {e}"))?;
            confine::go_offline();
            Some(net)
        }
        None => None,
    };
    let span = tracing::info_span!("vm", instance = %config.instance_id, vm = %config.vm.vm_id);
    span.in_scope(|| announce(&confinement));
    runtime()?.block_on(
        async {
            // Handled by doing nothing: neither a closed terminal nor Ctrl-C ends a VM.
            let _ignored = (signal(SignalKind::hangup())?, signal(SignalKind::interrupt())?);
            let mut terminate = signal(SignalKind::terminate())?;
            let terminated = async { terminate.recv().await.unwrap_or(()) };
            let (control, streams) = (listen(control)?, listen(streams)?);
            run_until(
                config,
                Arc::new(qemu),
                Outside { net, mounts },
                control,
                streams,
                confinement,
                terminated,
            )
            .await;
            io::Result::Ok(())
        }
        .instrument(span),
    )?;
    drop(scope);
    Ok(())
}

fn probe_once(config: &Path) -> Result<(), Failure> {
    let qemu = Qemu::new();
    let config = read_config(config)?;
    let (_, scope) = confine::apply(&config.vm, None, None, &[]);
    let report = runtime()?.block_on(probe(&config, &qemu));
    let line = serde_json::to_string(&report)?;
    writeln!(io::stdout(), "{line}")?;
    drop(scope);
    Ok(())
}

/// Does what a worker does, for a VM that needs nothing, and tells what came of it.
fn print_confinement() -> Result<(), Failure> {
    let nowhere = PathBuf::new();
    let vm = VmSpec {
        vm_id: VmId::from_random(std::process::id().into()),
        vmm_path: nowhere.clone(),
        accelerator: Accelerator::Tcg,
        kernel: nowhere.clone(),
        initramfs: nowhere.clone(),
        memory: Mib::DEFAULT,
        vcpus: Vcpus::DEFAULT,
        disks: Vec::new(),
        ram: Ram::default(),
        runtime_dir: nowhere,
    };
    let (confinement, scope) = confine::apply(&vm, None, None, &[]);
    let line = serde_json::to_string(&confinement)?;
    writeln!(io::stdout(), "{line}")?;
    drop(scope);
    Ok(())
}

fn announce(confinement: &Confinement) {
    tracing::info!(
        landlock_abi = confinement.landlock_abi,
        seccomp = confinement.seccomp,
        no_new_privs = confinement.no_new_privs,
        cgroup = confinement.cgroup.is_some(),
        "confined"
    );
}

fn read_config(path: &Path) -> Result<WorkerConfig, Failure> {
    let failed = |e: &dyn Error| format!("cannot read {}: {e}", PathBuf::from(path).display());
    let text = std::fs::read(path).map_err(|e| failed(&e))?;
    Ok(serde_json::from_slice(&text).map_err(|e| failed(&e))?)
}

/// One thread: the VMM dies with the thread that started it, and this one lives as long as the process.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn listen(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
