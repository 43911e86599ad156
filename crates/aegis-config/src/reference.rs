//! `docs/configuration.md` is made from the declarations. The tests fail when it is out of date; run them with
//! `UPDATE=1` to write it anew.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::Path;

use crate::env::{self, table};
use crate::settings::KEYS;
use crate::{Home, Settings};

const INTRODUCTION: &str = "\
# Configuration

Generated from the program: `UPDATE=1 cargo test -p aegis-config reference`.

A flag wins over an environment variable, which wins over `config.toml` in the home directory, which wins over the
built-in value. `aegis doctor` shows every setting and where it comes from. The daemon reads them when it starts.

A file that VMs need is taken from its flag or variable, else from `lib` in the home directory, else from
`../lib/aegis` beside the programs. A flag or variable that names no file is an error.
";

/// The file with every key at its default.
fn defaults() -> String {
    KEYS.iter().map(|(key, _, default)| format!("{key} = {default}\n")).collect()
}

fn reference() -> String {
    let mut text = INTRODUCTION.to_owned();
    let _ = write!(text, "\n## config.toml\n\nAll keys with their defaults:\n\n```toml\n{}```\n", defaults());
    text.push_str("\n## Environment\n\n| variable | meaning | key in config.toml |\n|---|---|---|\n");
    for (variable, meaning) in env::ALL {
        let key =
            KEYS.iter().find(|key| key.1 == *variable).map_or(String::new(), |key| format!("`{}`", key.0));
        let meaning = meaning.trim().trim_end_matches('.');
        let _ = writeln!(text, "| `{variable}` | {meaning} | {key} |");
    }
    text
}

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let text = reference();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "docs/configuration.md is out of date: `UPDATE=1 cargo test -p aegis-config reference`"
    );
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::resolve_in(Some(dir.path().to_owned()), &table(&[])).unwrap();
    std::fs::write(home.config_file(), defaults()).unwrap();
    let documented = Settings::load_in(&home, &table(&[])).unwrap();
    let built_in = Settings::default();
    assert_eq!(documented.default_memory.value, built_in.default_memory.value);
    assert_eq!(documented.default_disk.value, built_in.default_disk.value);
    assert_eq!(documented.default_vcpus.value, built_in.default_vcpus.value);
    assert_eq!(documented.default_image.value, built_in.default_image.value);
    assert_eq!(documented.pull.value, built_in.pull.value);
    assert_eq!(documented.mirrors.value, built_in.mirrors.value);
    assert_eq!(documented.ca_file.value, built_in.ca_file.value);
    assert_eq!(documented.accelerator.value, built_in.accelerator.value);
    assert_eq!(documented.boot_timeout.value, built_in.boot_timeout.value);
    assert_eq!(documented.log.value, built_in.log.value);
    assert_eq!(documented.pause_after.value, built_in.pause_after.value);
    assert_eq!(documented.hibernate_after.value, built_in.hibernate_after.value);
    assert_eq!(documented.ram_budget.value, built_in.ram_budget.value);
    assert_eq!(documented.router_addr.value, built_in.router_addr.value);
    assert_eq!(documented.templates.value, built_in.templates.value);
    assert_eq!(documented.templates_max_mib.value, built_in.templates_max_mib.value);
    assert_eq!(documented.templates_max_age.value, built_in.templates_max_age.value);
    assert_eq!(documented.log_max_mib.value, built_in.log_max_mib.value);
    assert_eq!(documented.log_files.value, built_in.log_files.value);
}
