//! `aegis-fake-worker <config.json>`: `aegis-vmm-worker` on a fake VMM and without confinement. What its guests do is
//! in `guests/<hostname>.json` beside the kernel.
#![deny(unsafe_code)]

mod sys;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use aegis_proto::worker::{CONTROL_FD, Confinement, STREAMS_FD, WorkerConfig};
use aegis_testkit::{FakeVmm, Guest};
use aegis_vmm_worker::{Outside, run_until};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).init();
    let control = sys::take_listener(CONTROL_FD)?;
    let streams = sys::take_listener(STREAMS_FD)?;
    let path = match std::env::args_os().skip(1).collect::<Vec<OsString>>().as_slice() {
        [path] => path.clone(),
        _ => return Err("usage: aegis-fake-worker <config.json>".into()),
    };
    let config: WorkerConfig = serde_json::from_slice(&std::fs::read(path)?)?;
    let vmm = FakeVmm::new(script(&config.vm.kernel, &config.hostname)?);
    // A signal to the group of the test is not meant for us.
    let _ = rustix::process::setsid();
    let confinement = Confinement { landlock_abi: 0, seccomp: false, no_new_privs: false, cgroup: None };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let terminated = async { terminate.recv().await.unwrap_or(()) };
        let (control, streams) = (UnixListener::from_std(control)?, UnixListener::from_std(streams)?);
        run_until(config, Arc::new(vmm), Outside::default(), control, streams, confinement, terminated).await;
        Ok(())
    })
}

fn script(kernel: &Path, hostname: &str) -> Result<Vec<Guest>, Failure> {
    let path = kernel.with_file_name("guests").join(format!("{hostname}.json"));
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}
