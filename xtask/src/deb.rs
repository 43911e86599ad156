//! Reading Debian packages: an `ar` archive whose `data.tar.*` member holds the files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::decompress;

/// Calls `visit` for every entry of the package's data archive, in archive order.
pub(crate) fn for_each_entry(
    deb: &Path,
    mut visit: impl FnMut(tar::Entry<'_, Box<dyn Read + '_>>) -> Result<()>,
) -> Result<()> {
    let mut attempt = || -> Result<()> {
        let mut members = ar::Archive::new(File::open(deb)?);
        while let Some(member) = members.next_entry() {
            let member = member?;
            if member.header().identifier().starts_with(b"data.tar") {
                let mut archive = tar::Archive::new(decompress::reader(member)?);
                for entry in archive.entries()? {
                    visit(entry?)?;
                }
                return Ok(());
            }
        }
        bail!("no data.tar member");
    };
    attempt().with_context(|| format!("cannot read package {}", deb.display()))
}
