//! `docs/cli.md` is made from the command line itself. The test fails when it is out of date; run it with
//! `UPDATE=1` to write it anew.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use crate::args::Cli;

fn reference() -> String {
    let mut text =
        "# Command line\n\nGenerated from the program: `UPDATE=1 cargo test -p aegis-cli reference`.\n"
            .to_owned();
    let mut root = Cli::command().disable_help_subcommand(true).term_width(100);
    root.build();
    section(&root, &mut text);
    text
}

fn section(command: &Command, text: &mut String) {
    let mut own = command.clone();
    let path = own.get_bin_name().unwrap_or_else(|| own.get_name()).to_owned();
    let help = own.render_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(text, "\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim());
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        section(sub, text);
    }
}

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let text = reference();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "docs/cli.md is out of date: `UPDATE=1 cargo test -p aegis-cli reference`");
}
