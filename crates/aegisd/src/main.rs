//! `aegisd`: the daemon in the foreground. `aegis up` starts it in the background.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use aegis_api::ShutdownMode;
use aegis_config::{AcceleratorSetting, Environment, Home, Settings};
use aegisd::{AssetFlags, Daemon, DaemonLog, DaemonOptions, Rotation};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Threads that run tasks. What blocks has threads of its own.
const WORKERS: usize = 2;
const BLOCKING_MAX: usize = 16;
const BLOCKING_KEPT: Duration = Duration::from_secs(2);

/// Runs microVMs and serves the API of AegisVM on a unix socket in its home.
#[derive(Debug, Parser)]
#[command(name = "aegisd", version)]
struct Args {
    /// Home directory [default: AEGIS_HOME, else ~/.aegis]
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Guest kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Guest initramfs
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// Root image of the image `base`
    #[arg(long, value_name = "FILE")]
    base_image: Option<PathBuf>,
    /// Empty file system from which the disks of instances are copied
    #[arg(long, value_name = "FILE")]
    disk_template: Option<PathBuf>,
    /// QEMU program
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// Program `aegis-vmm-worker`
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// Accelerator: auto, kvm, hvf or tcg
    #[arg(long, value_name = "NAME")]
    accel: Option<AcceleratorSetting>,
    /// Write the log to this file, which is rotated, in place of standard error
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Log filter, such as `info` or `aegisd=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do about a closed standard error.
            let _ = report(&*error);
            ExitCode::FAILURE
        }
    }
}

fn report(error: &dyn Error) -> io::Result<()> {
    let mut out = io::stderr().lock();
    writeln!(out, "error: {error}")?;
    let mut source = error.source();
    while let Some(cause) = source {
        writeln!(out, "  cause: {cause}")?;
        source = cause.source();
    }
    Ok(())
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let home = Home::resolve(args.home)?;
    let mut settings = Settings::load(&home)?;
    settings.accelerator = settings.accelerator.or_flag(args.accel);
    settings.log = settings.log.or_flag(args.log);
    let filter = EnvFilter::try_new(&settings.log.value).map_err(|e| {
        format!("the log filter `{}` set by {} makes no sense: {e}", settings.log.value, settings.log.source)
    })?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
    match &args.log_file {
        Some(path) => {
            let log = DaemonLog::open(path, Rotation::from(&settings));
            let log = log.map_err(|e| format!("cannot open the log {}: {e}", path.display()))?;
            subscriber.with_ansi(false).with_writer(Mutex::new(log)).init();
        }
        None => subscriber.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).init(),
    }
    let mut options = DaemonOptions::new(home, settings);
    options.docker_config = Environment::process().docker_config();
    options.assets = AssetFlags {
        kernel: args.kernel,
        initramfs: args.initramfs,
        base_image: args.base_image,
        disk_template: args.disk_template,
        qemu: args.qemu,
        worker: args.worker,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_keep_alive(BLOCKING_KEPT)
        .thread_name("aegisd")
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(options));
    // Not waiting for what blocks: an image import may take long.
    runtime.shutdown_background();
    served
}

async fn serve(options: DaemonOptions) -> Result<(), Box<dyn Error>> {
    // Before anything is started: a signal during the start ends the daemon in order, too.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let daemon = Daemon::start(options).await?;
    let mode = tokio::select! {
        () = asked_to_end(&mut interrupt, &mut terminate) => ShutdownMode::default(),
        mode = daemon.asked_to_end() => mode,
    };
    tracing::info!(?mode, "shutting down");
    tokio::select! {
        () = daemon.shutdown(mode) => tracing::info!("shut down"),
        () = asked_to_end(&mut interrupt, &mut terminate) => {
            tracing::warn!("asked again: ending at once; VMs that still run are taken over by the next aegisd");
        }
    }
    Ok(())
}

async fn asked_to_end(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
