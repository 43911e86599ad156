//! Which kernel modules the guest needs, and in which order they can be loaded.
//!
//! A package carries no `modules.dep` (that file is made on installation), so dependencies are read from where depmod
//! reads them: the `depends=` line in each module's `.modinfo` section.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// What the guest loads, most urgent first: the link to the host, then disks, then the rest.
pub(crate) const WANTED: &[&str] = &[
    "virtio_mmio",
    "virtio_console",
    "virtio_blk",
    "overlay",
    "erofs",
    "virtio_net",
    "virtio_rng",
    "fuse",
    "virtio_balloon",
];

/// The modules of one kernel: contents by name.
#[derive(Default)]
pub(crate) struct Modules {
    by_name: BTreeMap<String, Vec<u8>>,
}

impl Modules {
    /// Adds a module; `file_name` is what the package calls it.
    pub(crate) fn insert(&mut self, file_name: &str, contents: Vec<u8>) {
        self.by_name.insert(module_name(file_name), contents);
    }

    /// `wanted` with everything each one depends on before it, each once. A wanted module that does not exist is
    /// built into the kernel if `builtin` says so, and an error otherwise.
    pub(crate) fn load_order(&self, wanted: &[&str], builtin: &[String]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for name in wanted {
            self.visit(name, builtin, &mut order, 0)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, builtin: &[String], order: &mut Vec<String>, depth: usize) -> Result<()> {
        if order.iter().any(|loaded| loaded == name) || builtin.iter().any(|module| module == name) {
            return Ok(());
        }
        if depth > self.by_name.len() {
            bail!("module {name} depends on itself");
        }
        let contents =
            self.by_name.get(name).with_context(|| format!("the kernel package has no module {name}"))?;
        for dependency in depends(contents).with_context(|| format!("cannot read module {name}"))? {
            self.visit(&dependency, builtin, order, depth + 1)?;
        }
        order.push(name.to_owned());
        Ok(())
    }

    /// The contents of a module that [`Modules::load_order`] named.
    pub(crate) fn contents(&self, name: &str) -> Option<&[u8]> {
        self.by_name.get(name).map(Vec::as_slice)
    }
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` → `virtio_rng`: the kernel does not tell `-` and `_` apart.
pub(crate) fn module_name(path: &str) -> String {
    let file_name = path.rsplit('/').next().unwrap_or(path);
    file_name.split('.').next().unwrap_or(file_name).replace('-', "_")
}

/// The names in the `depends=` line of a module.
fn depends(elf: &[u8]) -> Result<Vec<String>> {
    let info = section(elf, ".modinfo").context("no .modinfo section")?;
    let line = info.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(b"depends="));
    let line = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    Ok(line.split(',').filter(|name| !name.is_empty()).map(module_name).collect())
}

/// The bytes of a section of a 64-bit little-endian ELF file.
fn section<'a>(elf: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?)));
    let quad = |at: usize| usize::try_from(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?)).ok();
    let word = |at: usize| usize::try_from(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?)).ok();
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry_size, count, names_index) = (quad(0x28)?, half(0x3a)?, half(0x3c)?, half(0x3e)?);
    let range = |index: usize| {
        let header = table + index * entry_size;
        elf.get(quad(header + 0x18)?..)?.get(..quad(header + 0x20)?)
    };
    let names = range(names_index)?;
    (0..count).find_map(|index| {
        let at = names.get(word(table + index * entry_size)?..)?;
        let found = at.strip_prefix(name.as_bytes())?.first() == Some(&0);
        if found { range(index) } else { None }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A module with nothing but a `.modinfo` section.
    pub(crate) fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (0x40, 0x40 + info.len());
        let table = names_at + names.len();
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(0x40, 0);
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[64, 0, 2, 0, 1, 0]);
        elf.extend(info.as_bytes());
        elf.extend(names);
        for (name, at, len) in [(1u32, info_at, info.len()), (10, names_at, names.len())] {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            elf.extend(header);
        }
        elf
    }

    #[test]
    fn dependencies_load_before_their_users_and_once() {
        let mut modules = Modules::default();
        modules.insert("kernel/virtio.ko", module("virtio_ring"));
        modules.insert("kernel/virtio_ring.ko", module(""));
        modules.insert("kernel/virtio-rng.ko.xz", module("virtio,rng-core"));
        modules.insert("kernel/virtio_net.ko", module("virtio_ring,virtio"));
        let order = modules.load_order(&["virtio_rng", "virtio_net"], &["rng_core".to_owned()]).unwrap();
        assert_eq!(order, ["virtio_ring", "virtio", "virtio_rng", "virtio_net"]);
    }

    #[test]
    fn a_missing_module_and_a_cycle_are_errors() {
        let mut modules = Modules::default();
        modules.insert("a.ko", module("b"));
        let missing = modules.load_order(&["a"], &[]).unwrap_err();
        assert_eq!(missing.to_string(), "the kernel package has no module b");
        modules.insert("b.ko", module("a"));
        assert!(modules.load_order(&["a"], &[]).unwrap_err().to_string().contains("depends on itself"));
    }
}
