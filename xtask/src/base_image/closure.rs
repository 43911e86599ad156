//! Which packages an image consists of.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use crate::apt::{Apt, Package};

/// The packages named in `wanted` and all that they depend on, sorted by name, except `unneeded`.
pub(super) fn resolve(apt: &Apt, wanted: &[&str], unneeded: &[&str]) -> Result<Vec<Package>> {
    resolve_with(|names| apt.show(names), wanted, unneeded)
}

fn resolve_with(
    show: impl Fn(&[String]) -> Result<BTreeMap<String, Package>>,
    wanted: &[&str],
    unneeded: &[&str],
) -> Result<Vec<Package>> {
    let mut chosen: BTreeMap<String, Package> = BTreeMap::new();
    let mut open: Vec<Vec<String>> = wanted.iter().map(|name| vec![(*name).to_owned()]).collect();
    // One round per level of the graph: each asks about all its names at once, because every question costs a process.
    while !open.is_empty() {
        let names: BTreeSet<String> = open.iter().flatten().cloned().collect();
        let known = show(&names.into_iter().collect::<Vec<_>>())?;
        let mut next = Vec::new();
        for any in open {
            if any.iter().any(|name| chosen.contains_key(name) || unneeded.contains(&name.as_str())) {
                continue;
            }
            let Some(package) = any.iter().find_map(|name| known.get(name)) else {
                bail!("no package provides `{}`", any.join(" | "));
            };
            next.extend(package.depends.iter().cloned());
            chosen.insert(package.name.clone(), package.clone());
        }
        open = next;
    }
    Ok(chosen.into_values().collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::apt::tests::package;

    fn names(wanted: &[&str]) -> Result<Vec<String>> {
        let all = [
            package("python", &[&["libc"], &["media"]]),
            package("libc", &[&["gcc"]]),
            package("gcc", &[&["libc"]]),
            package("media", &[&["virtual", "real"]]),
            package("real", &[&["debconf", "debconf-2.0"]]),
            package("broken", &[&["virtual"]]),
        ];
        let all: BTreeMap<_, _> = all.into_iter().map(|package| (package.name.clone(), package)).collect();
        let show = |names: &[String]| {
            Ok(names.iter().filter_map(|name| Some((name.clone(), all.get(name)?.clone()))).collect())
        };
        let packages = resolve_with(show, wanted, &["debconf"])?;
        Ok(packages.into_iter().map(|package| package.name).collect())
    }

    #[test]
    fn cycles_alternatives_and_unneeded_packages_are_settled() {
        assert_eq!(names(&["python"]).unwrap(), ["gcc", "libc", "media", "python", "real"]);
    }

    #[test]
    fn a_dependency_nobody_provides_is_named() {
        assert_eq!(names(&["broken"]).unwrap_err().to_string(), "no package provides `virtual`");
    }
}
