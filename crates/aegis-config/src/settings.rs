//! What the user can set: defaults, then `config.toml` in the home, then the environment, then flags. Each
//! value knows where it came from, so that `aegis doctor` can say it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use aegis_types::{Accelerator, ImageName, Mib, Vcpus, parse_duration};
use serde::Deserialize;

use crate::Home;
use crate::env::{self, Environment};

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// `config.toml`.
    File,
    /// This environment variable.
    Env(&'static str),
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("config.toml"),
            Self::Env(name) => f.write_str(name),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// Value.
    pub value: T,
    /// Provenance.
    pub source: Source,
}

impl<T> Setting<T> {
    /// The built-in value.
    pub fn default_value(value: T) -> Self {
        Self { value, source: Source::Default }
    }

    /// A flag, when given, replaces the value.
    #[must_use]
    pub fn or_flag(self, flag: Option<T>) -> Self {
        match flag {
            Some(value) => Self { value, source: Source::Flag },
            None => self,
        }
    }

    fn set_from_file(&mut self, value: Option<T>) {
        if let Some(value) = value {
            *self = Self { value, source: Source::File };
        }
    }

    fn set_from_env(
        &mut self,
        vars: &Environment,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<(), SettingsError> {
        let Some(text) = vars.get(name) else { return Ok(()) };
        let parsed = text.to_str().ok_or_else(|| "it is not UTF-8".to_owned()).and_then(parse);
        let value = parsed.map_err(|message| SettingsError::Variable { name, message })?;
        *self = Self { value, source: Source::Env(name) };
        Ok(())
    }
}

/// Which accelerator to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorSetting {
    /// The fastest that works.
    #[default]
    Auto,
    /// This one or none.
    Fixed(Accelerator),
}

impl fmt::Display for AcceleratorSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(accelerator) => accelerator.fmt(f),
        }
    }
}

impl FromStr for AcceleratorSetting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Accelerator::Kvm, Accelerator::Hvf, Accelerator::Tcg];
        match all.into_iter().find(|a| a.as_str() == text) {
            Some(accelerator) => Ok(Self::Fixed(accelerator)),
            None if text == "auto" => Ok(Self::Auto),
            None => Err(format!("unknown accelerator `{text}`: it is auto, kvm, hvf or tcg")),
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is there and cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file has an unknown key or a value that makes no sense.
    #[error("{}{}: {message}", path.display(), line.map(|n| format!(" line {n}")).unwrap_or_default())]
    File {
        /// The file.
        path: PathBuf,
        /// Line in it, from 1.
        line: Option<usize>,
        /// What is wrong; names the key.
        message: String,
    },
    /// A variable has a value that makes no sense.
    #[error("environment variable {name}: {message}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Memory of instances that ask for none.
    pub default_memory: Setting<Mib>,
    /// Virtual CPUs of instances that ask for none.
    pub default_vcpus: Setting<Vcpus>,
    /// Image of instances that ask for none.
    pub default_image: Setting<ImageName>,
    /// Accelerator.
    pub accelerator: Setting<AcceleratorSetting>,
    /// From the start of the VMM to the first answer of the guest.
    pub boot_timeout: Setting<Duration>,
    /// Log filter of the daemon, in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: Setting<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_memory: Setting::default_value(Mib::DEFAULT),
            default_vcpus: Setting::default_value(Vcpus::DEFAULT),
            default_image: Setting::default_value(ImageName::parse("base").expect("a valid name")),
            accelerator: Setting::default_value(AcceleratorSetting::Auto),
            boot_timeout: Setting::default_value(Duration::from_secs(60)),
            log: Setting::default_value("info".to_owned()),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    default_memory_mb: Option<Mib>,
    default_cpus: Option<Vcpus>,
    default_image: Option<ImageName>,
    #[serde(default, deserialize_with = "from_text")]
    accelerator: Option<AcceleratorSetting>,
    #[serde(default, deserialize_with = "from_duration")]
    boot_timeout: Option<Duration>,
    log: Option<String>,
}

/// Keys of the file: name, environment variable of the same meaning, an example, which is the default.
#[cfg(test)]
pub(crate) const KEYS: [(&str, &str, &str); 6] = [
    ("default_memory_mb", env::DEFAULT_MEMORY_MB, "512"),
    ("default_cpus", env::DEFAULT_CPUS, "1"),
    ("default_image", env::DEFAULT_IMAGE, "\"base\""),
    ("accelerator", env::ACCEL, "\"auto\""),
    ("boot_timeout", env::BOOT_TIMEOUT, "\"60s\""),
    ("log", env::LOG, "\"info\""),
];

fn from_text<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<AcceleratorSetting>, D::Error> {
    String::deserialize(d)?.parse().map(Some).map_err(serde::de::Error::custom)
}

fn from_duration<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    boot_timeout(&String::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

fn boot_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text).map_err(|e| e.to_string())?;
    if timeout < Duration::from_secs(1) {
        return Err(format!("boot timeout `{text}` is shorter than any boot: use at least 1s"));
    }
    Ok(timeout)
}

impl Settings {
    /// Defaults, then the file, then the environment.
    ///
    /// # Errors
    /// The first value that makes no sense; unknown keys of the file are errors too.
    pub fn load(home: &Home) -> Result<Self, SettingsError> {
        Self::load_in(home, &Environment::process())
    }

    /// [`Settings::load`] with another environment.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_in(home: &Home, vars: &Environment) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        let file = read(home)?;
        settings.default_memory.set_from_file(file.default_memory_mb);
        settings.default_vcpus.set_from_file(file.default_cpus);
        settings.default_image.set_from_file(file.default_image);
        settings.accelerator.set_from_file(file.accelerator);
        settings.boot_timeout.set_from_file(file.boot_timeout);
        settings.log.set_from_file(file.log);

        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is not a number"));
        settings.default_memory.set_from_env(vars, env::DEFAULT_MEMORY_MB, |text| {
            Mib::new(number(text)?).map_err(|e| e.to_string())
        })?;
        settings.default_vcpus.set_from_env(vars, env::DEFAULT_CPUS, |text| {
            Vcpus::new(number(text)?).map_err(|e| e.to_string())
        })?;
        settings.default_image.set_from_env(vars, env::DEFAULT_IMAGE, |text| {
            ImageName::parse(text).map_err(|e| e.to_string())
        })?;
        settings.accelerator.set_from_env(vars, env::ACCEL, str::parse)?;
        settings.boot_timeout.set_from_env(vars, env::BOOT_TIMEOUT, boot_timeout)?;
        settings.log.set_from_env(vars, env::LOG, |text| Ok(text.to_owned()))?;
        Ok(settings)
    }
}

fn read(home: &Home) -> Result<File, SettingsError> {
    let path = home.config_file();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(source) => return Err(SettingsError::Read { path, source }),
    };
    toml::from_str(&text).map_err(|e| {
        let before = e.span().and_then(|span| text.get(..span.start));
        let line = before.map(|text| text.matches('\n').count() + 1);
        SettingsError::File { path, line, message: e.message().trim_end().to_owned() }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::env::table;

    fn home_with(config: &str) -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve_in(Some(dir.path().to_owned()), &table(&[])).unwrap();
        std::fs::write(home.config_file(), config).unwrap();
        (dir, home)
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve_in(Some(dir.path().to_owned()), &table(&[])).unwrap();
        assert_eq!(Settings::load_in(&home, &table(&[])).unwrap(), Settings::default());
    }

    #[test]
    fn environment_wins_over_file_and_both_are_named() {
        let (_dir, home) = home_with(
            "default_memory_mb = 256\ndefault_cpus = 2\naccelerator = \"tcg\"\nboot_timeout = \"2m\"\nlog = \"debug\"\n",
        );
        let vars = table(&[("AEGIS_DEFAULT_MEMORY_MB", "1024"), ("AEGIS_DEFAULT_IMAGE", "tools:1")]);
        let settings = Settings::load_in(&home, &vars).unwrap();
        assert_eq!(settings.default_memory.value.get(), 1024);
        assert_eq!(settings.default_memory.source, Source::Env("AEGIS_DEFAULT_MEMORY_MB"));
        assert_eq!((settings.default_vcpus.value.get(), settings.default_vcpus.source), (2, Source::File));
        assert_eq!(settings.default_image.value.as_str(), "tools:1");
        assert_eq!(settings.accelerator.value, AcceleratorSetting::Fixed(Accelerator::Tcg));
        assert_eq!(settings.boot_timeout.value, Duration::from_secs(120));
        assert_eq!(settings.log.value, "debug");
        assert_eq!(settings.log.or_flag(Some("warn".into())).source, Source::Flag);
    }

    #[test]
    fn mistakes_in_the_file_name_key_and_line() {
        for (config, expected) in [
            ("log = \"info\"\nmemroy = 5\n", "line 2: unknown field `memroy`"),
            ("default_memory_mb = 1\n", "line 1: memory in MiB must be between 128"),
            ("\naccelerator = \"xen\"\n", "line 2: unknown accelerator `xen`"),
            ("boot_timeout = \"0s\"\n", "shorter than any boot"),
            ("boot_timeout = 5\n", "expected a string"),
            ("log = \n", "line 1"),
        ] {
            let (_dir, home) = home_with(config);
            let text = Settings::load_in(&home, &table(&[])).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn mistakes_in_the_environment_name_the_variable() {
        let (_dir, home) = home_with("");
        for (name, value, expected) in [
            ("AEGIS_DEFAULT_MEMORY_MB", "lots", "AEGIS_DEFAULT_MEMORY_MB: `lots` is not a number"),
            ("AEGIS_DEFAULT_CPUS", "65", "AEGIS_DEFAULT_CPUS: number of CPUs must be between 1 and 64"),
            ("AEGIS_ACCEL", "KVM", "AEGIS_ACCEL: unknown accelerator `KVM`"),
            ("AEGIS_BOOT_TIMEOUT", "5", "AEGIS_BOOT_TIMEOUT: invalid duration `5`"),
        ] {
            let text = Settings::load_in(&home, &table(&[(name, value)])).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
