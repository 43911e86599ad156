//! Build automation for AegisVM: `cargo xtask <command>`, with a thin Makefile over it.
//!
//! Programs land in `bin/`, what VMs boot from in `lib/aegis/`, downloads in `.cache/`. Every command only does what is
//! out of date. Nothing but `setup` ever needs root.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a command line tool talks to its user")]

mod apt;
mod assets;
mod base_image;
mod build;
mod bzimage;
mod clean;
mod cmd;
mod cpio;
mod deb;
mod decompress;
mod demo;
mod files;
mod guest;
mod initramfs;
mod install;
mod kernel;
mod lint;
mod manifest;
mod modules;
mod repo;
mod setup;
mod stamp;
mod tailored;
mod test;
mod ui;
mod upper;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use repo::Repo;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build automation for AegisVM")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building, running and testing need, or say what to install
    Setup,
    /// Make the programs (bin/) and what VMs boot from (lib/aegis/)
    Build,
    /// Make what VMs boot from: kernel, initramfs, base image, empty disk
    Assets {
        /// Use the newest packages even if the assets are up to date
        #[arg(long)]
        update: bool,
    },
    /// Make the base image only
    BaseImage {
        /// Use the newest packages even if the image is up to date
        #[arg(long)]
        update: bool,
    },
    /// Compile the guest harness and pack the initramfs
    Guest,
    /// Compile the tailored kernel (about five minutes on two cores)
    Kernel {
        /// Compilers to run at once [default: one per processor]
        #[arg(long, short)]
        jobs: Option<usize>,
    },
    /// Set up, build, start the daemon and run a command in a VM
    Demo,
    /// Run all tests
    Test {
        /// Only what needs no VM
        #[arg(long, conflicts_with = "integration")]
        unit: bool,
        /// Only real VMs
        #[arg(long)]
        integration: bool,
        /// Arguments for the test program (with --integration)
        #[arg(last = true, requires = "integration")]
        args: Vec<OsString>,
    },
    /// Check formatting and lints
    Lint,
    /// Copy programs and assets to PREFIX/bin and PREFIX/lib/aegis
    Install {
        /// Where to
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
        /// Put in front of every path, for making packages
        #[arg(long, env = "DESTDIR")]
        destdir: Option<PathBuf>,
    },
    /// Remove everything that building made
    Clean {
        /// Keep downloaded packages
        #[arg(long)]
        keep_downloads: bool,
    },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  cause: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    let repo = Repo::find();
    match command {
        Command::Setup => setup::run(),
        Command::Build => build::all(&repo),
        Command::Assets { update } => assets::build(&repo, update),
        Command::BaseImage { update } => assets::base_image(&repo, update),
        Command::Guest => assets::guest(&repo),
        Command::Kernel { jobs } => tailored::build(&repo, jobs),
        Command::Demo => demo::run(&repo),
        Command::Test { unit: true, .. } => test::unit(&repo),
        Command::Test { integration: true, args, .. } => test::integration(&repo, &args),
        Command::Test { .. } => test::all(&repo),
        Command::Lint => lint::run(&repo),
        Command::Install { prefix, destdir } => install::run(&repo, &prefix, destdir.as_deref()),
        Command::Clean { keep_downloads } => clean::run(&repo, keep_downloads),
    }
}
