//! The configuration of an image: what it says about the process to be started in it.
//!
//! [`OciConfig`] is the document that a registry or an archive has, which nobody has checked; [`ImageConfig`] is what
//! AegisVM keeps of it, checked and bounded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Digest;

/// Entries of each list and map.
const ENTRIES_MAX: usize = 1024;
/// Bytes of all texts together. Linux gives a new process this much for arguments and environment on any stack.
const BYTES_MAX: usize = 128 << 10;
/// Longest user and working directory in bytes.
const TEXT_MAX: usize = 4095;

/// An image configuration as the OCI image specification and Docker write it, as far as AegisVM reads it. Docker writes
/// `null` for what is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct OciConfig {
    /// In the words of Go: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// In the words of Go: `linux`.
    #[serde(default)]
    pub os: String,
    /// Of the architecture: `v7`.
    #[serde(default)]
    pub variant: Option<String>,
    /// What a process in the image is started with.
    #[serde(default)]
    pub config: Option<OciProcess>,
    /// What the layers are when they are unpacked.
    pub rootfs: OciRootFs,
}

/// The member `config` of an image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OciProcess {
    /// `NAME=value` each.
    pub env: Option<Vec<String>>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// Where the process starts.
    pub working_dir: Option<String>,
    /// The program with its first arguments.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments, or a whole command if there is no entry point.
    pub cmd: Option<Vec<String>>,
    /// Anything at all.
    pub labels: Option<BTreeMap<String, String>>,
}

/// The member `rootfs` of an image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct OciRootFs {
    /// The digest of every layer, lowest first, as an uncompressed tar.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// What AegisVM keeps of the configuration of an image. No text has a NUL byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ImageConfig {
    /// The architecture in the words of Go: `amd64`, `arm64`. Empty if the image does not say.
    pub architecture: String,
    /// The environment of a process.
    pub env: BTreeMap<String, String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// Absolute path in the guest.
    pub workdir: Option<String>,
    /// The program with its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or a whole command if there is no entry point.
    pub cmd: Vec<String>,
    /// What the maker of the image wrote down about it.
    pub labels: BTreeMap<String, String>,
}

/// A configuration that no process could be started with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImageConfig {
    /// More or longer than is accepted.
    #[error("the {what} of the image configuration is too large: at most {max} {unit} are accepted")]
    TooLarge {
        /// The member.
        what: &'static str,
        /// The bound.
        max: usize,
        /// Of the bound.
        unit: &'static str,
    },
    /// A NUL byte, or a name that cannot be one.
    #[error("the {what} of the image configuration has {problem}")]
    Malformed {
        /// The member.
        what: &'static str,
        /// What it has.
        problem: &'static str,
    },
}

impl ImageConfig {
    /// Takes over what AegisVM keeps. Of two variables of one name the later counts, as in Docker; an entry without
    /// `=` is no variable and is left out.
    ///
    /// # Errors
    /// [`InvalidImageConfig`] if a process could not be started with it, or it is larger than any image needs.
    pub fn from_oci(oci: OciConfig) -> Result<Self, InvalidImageConfig> {
        let process = oci.config.unwrap_or_default();
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let variable = |entry: String| entry.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        let entries = process.env.unwrap_or_default();
        check_count("environment", entries.len())?;
        let config = Self {
            architecture: oci.architecture,
            env: entries.into_iter().filter_map(variable).collect(),
            user: filled(process.user),
            // Relative ones are relative to the root, where Docker resolves them too.
            workdir: filled(process.working_dir)
                .map(|dir| if dir.starts_with('/') { dir } else { format!("/{dir}") }),
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            labels: process.labels.unwrap_or_default(),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), InvalidImageConfig> {
        check_text("architecture", &self.architecture)?;
        for (what, text) in [("user", &self.user), ("working directory", &self.workdir)] {
            check_text(what, text.as_deref().unwrap_or_default())?;
        }
        for (what, list) in [("entry point", &self.entrypoint), ("command", &self.cmd)] {
            check_count(what, list.len())?;
            check_bytes(what, list.iter())?;
        }
        for (what, map) in [("environment", &self.env), ("labels", &self.labels)] {
            check_count(what, map.len())?;
            check_bytes(what, map.iter().flat_map(|(key, value)| [key, value]))?;
        }
        if self.env.keys().any(String::is_empty) {
            return Err(InvalidImageConfig::Malformed {
                what: "environment",
                problem: "a variable without a name",
            });
        }
        Ok(())
    }
}

fn check_text(what: &'static str, text: &str) -> Result<(), InvalidImageConfig> {
    if text.len() > TEXT_MAX {
        return Err(InvalidImageConfig::TooLarge { what, max: TEXT_MAX, unit: "bytes" });
    }
    if text.contains(char::is_control) {
        return Err(InvalidImageConfig::Malformed { what, problem: "a control character" });
    }
    Ok(())
}

fn check_count(what: &'static str, count: usize) -> Result<(), InvalidImageConfig> {
    if count > ENTRIES_MAX {
        return Err(InvalidImageConfig::TooLarge { what, max: ENTRIES_MAX, unit: "entries" });
    }
    Ok(())
}

fn check_bytes<'a>(
    what: &'static str,
    texts: impl Iterator<Item = &'a String>,
) -> Result<(), InvalidImageConfig> {
    let mut bytes = 0;
    for text in texts {
        if text.contains('\0') {
            return Err(InvalidImageConfig::Malformed { what, problem: "a NUL byte" });
        }
        bytes += text.len();
    }
    if bytes > BYTES_MAX {
        return Err(InvalidImageConfig::TooLarge { what, max: BYTES_MAX, unit: "bytes" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn kept(json: &str) -> Result<ImageConfig, InvalidImageConfig> {
        ImageConfig::from_oci(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_docker_config_is_read() {
        let config = kept(
            r#"{"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "history": [{}],
                "config": {"Env": ["PATH=/bin:/usr/bin", "A=1=2", "A=3", "EMPTY=", "NONE"], "User": "app:1000",
                "WorkingDir": "srv/app", "Entrypoint": ["/init"], "Cmd": ["serve"], "Labels": {"a.b": "c"},
                "ExposedPorts": {"80/tcp": {}}},
                "rootfs": {"type": "layers", "diff_ids": []}}"#,
        )
        .unwrap();
        assert_eq!(config.architecture, "amd64");
        let env: Vec<_> = config.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(env, [("A", "3"), ("EMPTY", ""), ("PATH", "/bin:/usr/bin")]);
        assert_eq!(config.user.as_deref(), Some("app:1000"));
        assert_eq!(config.workdir.as_deref(), Some("/srv/app"));
        assert_eq!((config.entrypoint, config.cmd), (vec!["/init".to_owned()], vec!["serve".to_owned()]));
        assert_eq!(config.labels["a.b"], "c");
    }

    #[test]
    fn null_and_empty_mean_nothing() {
        let config = kept(
            r#"{"architecture": "arm64", "os": "linux", "variant": "v8", "config": {"Env": null, "User": "",
                "WorkingDir": "", "Entrypoint": null, "Cmd": null, "Labels": null}, "rootfs": {"diff_ids": []}}"#,
        )
        .unwrap();
        assert_eq!(config, ImageConfig { architecture: "arm64".to_owned(), ..ImageConfig::default() });
        assert_eq!(kept(r#"{"config": null, "rootfs": {}}"#), Ok(ImageConfig::default()));
    }

    #[test]
    fn what_no_process_could_have_is_refused() {
        let config = |member: String| kept(&format!(r#"{{"config": {{{member}}}, "rootfs": {{}}}}"#));
        for bad in [
            r#""Env": ["A=\u0000"]"#.to_owned(),
            r#""Env": ["=x"]"#.to_owned(),
            r#""Cmd": ["a\u0000b"]"#.to_owned(),
            r#""User": "a\nb""#.to_owned(),
            r#""WorkingDir": "/a\u0000""#.to_owned(),
            format!(r#""WorkingDir": "{}""#, "a".repeat(TEXT_MAX)),
            format!(r#""Cmd": ["{}"]"#, "a".repeat(BYTES_MAX + 1)),
            format!(r#""Entrypoint": [{}""]"#, r#""","#.repeat(ENTRIES_MAX)),
            format!(r#""Env": [{}"A=1"]"#, r#""A=1","#.repeat(ENTRIES_MAX)),
        ] {
            assert!(config(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn diff_ids_are_digests() {
        let bad = r#"{"rootfs": {"diff_ids": ["sha256:../../etc"]}}"#;
        assert!(serde_json::from_str::<OciConfig>(bad).is_err());
    }

    #[test]
    fn a_kept_config_survives_a_file() {
        let config = kept(r#"{"config": {"Env": ["A=b"], "Cmd": ["x"]}, "rootfs": {}}"#).unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&text).unwrap(), config);
        assert_eq!(serde_json::from_str::<ImageConfig>("{}").unwrap(), ImageConfig::default());
    }
}
