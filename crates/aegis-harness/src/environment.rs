//! Environments of guest processes.

use std::collections::BTreeMap;

/// Variables by name.
pub(crate) type Environment = BTreeMap<String, String>;

/// Where programs are looked for when the environment does not say.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What every process starts from.
pub(crate) fn base() -> Environment {
    // Python buffers output to a pipe: a log line would appear minutes late, or never when the process is killed.
    [("PATH", DEFAULT_PATH), ("HOME", "/root"), ("TERM", "linux"), ("PYTHONUNBUFFERED", "1")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// `base` for a user with this home directory.
pub(crate) fn at_home(mut base: Environment, home: &str) -> Environment {
    base.insert("HOME".to_owned(), home.to_owned());
    base
}

/// `base` with `added` over it.
pub(crate) fn overlay(base: &Environment, added: &Environment) -> Environment {
    let mut merged = base.clone();
    merged.extend(added.iter().map(|(key, value)| (key.clone(), value.clone())));
    merged
}
