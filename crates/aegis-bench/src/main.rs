//! `aegis bench`: the promises of SPECIFICATION.md, measured on this machine.
//!
//! Every figure of ours stands beside a floor that was measured in the same run, because machines and moments differ
//! more than programs do. A program of its own, since the command line never touches a VMM.
#![forbid(unsafe_code)]

mod bare;
mod boot;
mod guest;
mod installation;
mod report;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures AegisVM beside a bare VMM on this machine
#[derive(Parser)]
#[command(name = "aegis bench", version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Cold boot, run, exec, pause and resume
    Boot(BootArgs),
}

#[derive(clap::Args)]
struct BootArgs {
    /// How often each boot is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Guest kernel; found like the daemon's when absent
    #[arg(long)]
    kernel: Option<PathBuf>,
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
    let What::Boot(args) = Args::parse().what;
    match boot::measure(args.runs, args.kernel.as_deref()).await {
        Ok(report) => {
            anstream::print!("{}", if args.json { report.to_json() } else { report.to_table() });
            ExitCode::SUCCESS
        }
        Err(error) => {
            anstream::eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
