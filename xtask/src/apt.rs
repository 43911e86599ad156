//! Debian packages as data: looked up and downloaded with apt's own, signature-checking tools, never installed and
//! never run. Nothing here needs root: where the system's package lists are missing or out of date, a private copy of
//! the lists below `.cache/apt` is used instead.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::repo::Repo;
use crate::ui::{Step, human_bytes};
use crate::{cmd, files};

/// What the archive says about the candidate version of one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    /// Binary package name.
    pub(crate) name: String,
    /// Candidate version.
    pub(crate) version: String,
    arch: String,
    /// `Pre-Depends` and `Depends`: all of the outer list, any one of each inner list.
    pub(crate) depends: Vec<Vec<String>>,
    bytes: u64,
    sha256: String,
}

impl Package {
    fn file_name(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version.replace(':', "%3a"), self.arch)
    }
}

/// One set of package lists.
pub(crate) struct Apt {
    options: Vec<OsString>,
    debs: PathBuf,
}

/// Runs `work` with the system's package lists; if they are missing or too old to find or fetch something, once more
/// with freshly downloaded private ones.
pub(crate) fn with_lists<T>(repo: &Repo, work: impl Fn(&Apt) -> Result<T>) -> Result<T> {
    if cmd::find("apt-get").is_none() {
        bail!(
            "the kernel and the base image are made from Debian packages, which needs `apt-get` (Debian 12 or newer)"
        );
    }
    let debs = repo.cache().join("debs");
    files::ensure_dir(&debs)?;
    let system = Apt { options: Vec::new(), debs: debs.clone() };
    let first = match work(&system) {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    let step = Step::start("package lists (the system's cannot be used)");
    let private = Apt::private(repo, debs, &step)?;
    step.done(repo.cache().join("apt").display().to_string());
    work(&private).with_context(|| format!("with the system's package lists: {first:#}"))
}

impl Apt {
    fn private(repo: &Repo, debs: PathBuf, step: &Step) -> Result<Apt> {
        let root = repo.cache().join("apt");
        for dir in ["lists/partial", "archives/partial"] {
            files::ensure_dir(&root.join(dir))?;
        }
        let option = |key: &str, value: &Path| {
            let mut option = OsString::from(format!("{key}="));
            option.push(value);
            ["-o".into(), option]
        };
        let mut options: Vec<OsString> = Vec::new();
        options.extend(option("Dir::State::Lists", &root.join("lists")));
        options.extend(option("Dir::Cache::Archives", &root.join("archives")));
        options.extend(option("Dir::Cache::pkgcache", &root.join("pkgcache.bin")));
        options.extend(option("Dir::Cache::srcpkgcache", &root.join("srcpkgcache.bin")));
        // As root, apt would change to a user that may not enter this directory.
        options.extend(option("APT::Sandbox::User", Path::new("")));
        let apt = Apt { options, debs };
        cmd::run_noted(apt.command("apt-get")?.arg("update"), step)
            .context("cannot download package lists (is the network reachable?)")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = cmd::tool(program)?;
        command.args(&self.options).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        Ok(command)
    }

    /// The packages among `names` that exist. Virtual packages do not.
    pub(crate) fn show(&self, names: &[String]) -> Result<BTreeMap<String, Package>> {
        let output = self
            .command("apt-cache")?
            .args(["show", "--no-all-versions", "--"])
            .args(names)
            .stdin(Stdio::null())
            .output()
            .context("cannot run `apt-cache`")?;
        // The exit status tells whether *all* names exist; the caller decides which of them must.
        let text = String::from_utf8_lossy(&output.stdout);
        text.split("\n\n")
            .filter(|stanza| !stanza.trim().is_empty())
            .map(|stanza| parse(stanza).map(|package| (package.name.clone(), package)))
            .collect()
    }

    /// One package that must exist.
    pub(crate) fn show_one(&self, name: &str) -> Result<Package> {
        let found = self.show(&[name.to_owned()])?.remove(name);
        found.with_context(|| format!("no package `{name}` in the package lists"))
    }

    /// Downloads what is not there yet and returns the files, in the order of `packages`.
    pub(crate) fn download(&self, packages: &[Package], step: &Step) -> Result<Vec<PathBuf>> {
        let path = |package: &Package| self.debs.join(package.file_name());
        let complete = |package: &Package| {
            let path = path(package);
            fs::metadata(&path).is_ok_and(|meta| meta.len() == package.bytes)
                && files::sha256(&path).is_ok_and(|sum| sum == package.sha256)
        };
        let missing: Vec<&Package> = packages.iter().filter(|package| !complete(package)).collect();
        if !missing.is_empty() {
            let bytes = missing.iter().map(|package| package.bytes).sum();
            step.note(&format!("downloading {} packages, {}", missing.len(), human_bytes(bytes)));
            let mut fetch = self.command("apt-get")?;
            fetch.args(["--quiet", "download", "--"]).current_dir(&self.debs);
            fetch.args(missing.iter().map(|package| format!("{}={}", package.name, package.version)));
            cmd::run_noted(&mut fetch, step)?;
        }
        if let Some(package) = packages.iter().find(|package| !complete(package)) {
            bail!("the download of {} is damaged", package.file_name());
        }
        Ok(packages.iter().map(path).collect())
    }
}

fn parse(stanza: &str) -> Result<Package> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    let need = |name: &str| field(name).with_context(|| format!("package record without {name}"));
    let depends = ["Pre-Depends", "Depends"].iter().filter_map(|name| field(name));
    Ok(Package {
        name: need("Package")?,
        version: need("Version")?,
        arch: need("Architecture")?,
        depends: depends.flat_map(|list| parse_depends(&list)).collect(),
        bytes: need("Size")?.parse().context("package size")?,
        sha256: need("SHA256")?,
    })
}

/// `a (>= 1) | b:any, c [amd64]` → `[[a, b], [c]]`: one release is self-consistent, so names are enough.
fn parse_depends(list: &str) -> Vec<Vec<String>> {
    let name = |word: &str| {
        let end = word.find(['(', '[', ' ', ':']).unwrap_or(word.len());
        word[..end].to_owned()
    };
    list.split(',').map(|any| any.split('|').map(|word| name(word.trim())).collect()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A package that depends on one of each list.
    pub(crate) fn package(name: &str, depends: &[&[&str]]) -> Package {
        let owned = |any: &&[&str]| any.iter().map(|name| (*name).to_owned()).collect();
        Package {
            name: name.to_owned(),
            version: "1".to_owned(),
            arch: "all".to_owned(),
            depends: depends.iter().map(owned).collect(),
            bytes: 0,
            sha256: String::new(),
        }
    }

    #[test]
    fn dependencies_lose_versions_and_architectures_but_keep_alternatives() {
        let parsed = parse_depends("libc6 (>= 2.34), debconf (>= 0.5) | debconf-2.0, python3:any [amd64]");
        assert_eq!(parsed, [vec!["libc6"], vec!["debconf", "debconf-2.0"], vec!["python3"]]);
    }

    #[test]
    fn a_record_names_the_file_apt_will_write() {
        let record = "Package: busybox-static\nVersion: 1:1.35.0-4+b1\nArchitecture: amd64\n\
                      Depends: a\nPre-Depends: b\nSize: 7\nSHA256: 00\nDescription: x\n Depends: no";
        let package = parse(record).unwrap();
        assert_eq!(package.file_name(), "busybox-static_1%3a1.35.0-4+b1_amd64.deb");
        assert_eq!(package.depends, [["b"], ["a"]]);
    }
}
