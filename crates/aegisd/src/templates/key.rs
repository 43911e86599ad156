//! Which template a VM can be started from.

use std::fmt;
use std::io;
use std::path::Path;

use aegis_config::Asset;

use crate::launcher::machine::{Machine, Machines, Parts};

/// Changes whenever templates are made or used in another way.
const TEMPLATE_FORMAT: u32 = 2;
/// Hexadecimal digits that name a template.
const LENGTH: usize = 32;
/// Hexadecimal digits that name its build, where paths must be short.
const SHORT: usize = 12;

/// Stands for everything that a template depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key(String);

impl Key {
    /// The key of the template for this machine. Reads kernel and initramfs if they are new.
    pub(super) fn of(machines: &Machines, machine: &Machine) -> io::Result<Key> {
        make(machines, machine, |path| machines.digests.of(path).map(Some)).map(|key| {
            // Every digest was there.
            key.expect("the digest of a readable file is known")
        })
    }

    /// The same if it takes no reading of large files.
    pub(super) fn at_once(machines: &Machines, machine: &Machine) -> io::Result<Option<Key>> {
        make(machines, machine, |path| machines.digests.remembered(path))
    }

    /// The key that a directory is named after.
    pub(super) fn parse(name: &str) -> Option<Key> {
        let valid = name.len() == LENGTH && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Key(name.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn short(&self) -> &str {
        &self.0[..SHORT]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn make(
    machines: &Machines,
    machine: &Machine,
    digest: impl Fn(&Path) -> io::Result<Option<String>>,
) -> io::Result<Option<Key>> {
    let (Some(kernel), Some(initramfs)) = (digest(&machine.kernel)?, digest(&machine.initramfs)?) else {
        return Ok(None);
    };
    let mut parts = Parts::new("template", TEMPLATE_FORMAT);
    parts.text("machine", &machine.key);
    parts.text("kernel", &kernel);
    parts.text("initramfs", &initramfs);
    // The worker knows the arguments of the VMM.
    parts.file("worker", &machine.worker)?;
    let disk = machines.assets.path(Asset::DiskTemplate).map_err(io::Error::other)?;
    parts.file("disk", &disk)?;
    parts.text("size of the disk", &machine.template_disk.get().to_string());
    let mut key = parts.digest();
    key.truncate(LENGTH);
    Ok(Some(Key(key)))
}
