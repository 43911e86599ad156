//! `aegis bench`: the promises of SPECIFICATION.md, measured on this machine.
//!
//! Every figure of ours stands beside a floor that was measured in the same run, because machines and moments differ
//! more than programs do. A program of its own, since the command line never touches a VMM.
#![forbid(unsafe_code)]

mod bare;
mod boot;
mod density;
mod fs;
mod guest;
mod host;
mod installation;
mod instance;
mod net;
mod report;
mod restore;
mod start;
mod stats;
mod tcp;
mod timed;
mod wake;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;

/// Measures AegisVM beside a bare VMM on this machine
#[derive(Parser)]
#[command(name = "aegis bench", version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Cold boot, run, exec, pause and resume, without templates
    Boot(Rounds),
    /// Starts from a template, beside a bare restore of the same template
    Start(Rounds),
    /// Hibernation, and connections to resting instances
    Wake(WakeArgs),
    /// Transfers and connections of a guest, beside QEMU's own network
    Net(Rounds),
    /// A directory of the host in a guest, beside the guest's own disk
    Fs(Rounds),
    /// Many instances on a small memory budget
    Density(DensityArgs),
}

#[derive(clap::Args)]
struct Rounds {
    /// How often each figure is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct WakeArgs {
    #[command(flatten)]
    rounds: Rounds,
    /// Clients that connect at once to a hibernated instance
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
}

#[derive(clap::Args)]
struct DensityArgs {
    /// Instances
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// Memory that all VMs may have together, in MiB
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(512..))]
    budget: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Common {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Guest kernel; found like the daemon's when absent
    #[arg(long)]
    kernel: Option<PathBuf>,
}

impl What {
    async fn measure(&self) -> Result<Report, BenchError> {
        let kernel = self.common().kernel.as_deref();
        match self {
            Self::Boot(args) => boot::measure(args.runs, kernel).await,
            Self::Start(args) => start::measure(args.runs, kernel).await,
            Self::Wake(args) => wake::measure(args.rounds.runs, args.clients, kernel).await,
            Self::Net(args) => net::measure(args.runs, kernel).await,
            Self::Fs(args) => fs::measure(args.runs, kernel).await,
            Self::Density(args) => density::measure(args.count, args.budget, kernel).await,
        }
    }

    fn common(&self) -> &Common {
        match self {
            Self::Boot(args) | Self::Start(args) | Self::Net(args) | Self::Fs(args) => &args.common,
            Self::Wake(args) => &args.rounds.common,
            Self::Density(args) => &args.common,
        }
    }
}

/// What stopped a measurement.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("cannot {context}: {source}")]
    Io { context: &'static str, source: std::io::Error },
    #[error(transparent)]
    Home(#[from] aegis_config::HomeError),
    #[error(transparent)]
    Missing(#[from] aegis_config::NotFound),
    #[error("the daemon failed: {0}")]
    Client(#[from] aegis_client::ClientError),
    #[error("the bare VMM failed: {0}")]
    Vmm(#[from] aegis_vmm::VmmError),
    #[error("the bare VM did not answer: {0}")]
    Link(#[from] aegis_link::LinkError),
    #[error("{0}")]
    Failed(String),
}

impl BenchError {
    fn io(context: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { context, source }
    }
}

// One thread: the bare VMM dies with the thread that started it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let what = Args::parse().what;
    match what.measure().await {
        Ok(report) => {
            anstream::print!("{}", if what.common().json { report.to_json() } else { report.to_table() });
            ExitCode::SUCCESS
        }
        Err(error) => {
            anstream::eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
