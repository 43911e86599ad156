//! What the user can set: defaults, then `config.toml` in the home, then the environment, then flags. Each
//! value knows where it came from, so that `aegis doctor` can say it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use aegis_types::{Accelerator, DiskSize, ImageName, Mib, PullPolicy, Vcpus, parse_duration};
use serde::Deserialize;

use crate::env::{self, Environment};
use crate::{Home, Mirrors, RamBudget};

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

/// Whether templates are made and used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TemplatesSetting {
    /// Where they help.
    #[default]
    Auto,
    /// Never: every start that is not a wake boots.
    Off,
}

impl fmt::Display for TemplatesSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
        })
    }
}

impl FromStr for TemplatesSetting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Off];
        all.into_iter()
            .find(|setting| setting.to_string() == text)
            .ok_or_else(|| format!("unknown value `{text}` of templates: it is auto or off"))
    }
}

/// Where the master key of the secrets is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyStoreSetting {
    /// The file `master.key` in the home.
    #[default]
    File,
    /// The keychain of the desktop.
    Keychain,
}

impl fmt::Display for KeyStoreSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Keychain => "keychain",
        })
    }
}

impl FromStr for KeyStoreSetting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::File, Self::Keychain];
        all.into_iter()
            .find(|setting| setting.to_string() == text)
            .ok_or_else(|| format!("unknown key store `{text}`: it is file or keychain"))
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
    /// Disk of instances that ask for none.
    pub default_disk: Setting<DiskSize>,
    /// Virtual CPUs of instances that ask for none.
    pub default_vcpus: Setting<Vcpus>,
    /// Image of instances that ask for none.
    pub default_image: Setting<ImageName>,
    /// Whether registries are asked for the images of instances that say nothing else.
    pub pull: Setting<PullPolicy>,
    /// Who is asked before a registry.
    pub mirrors: Setting<Mirrors>,
    /// Certificates (PEM) of authorities that are trusted for registries beside those of the system.
    pub ca_file: Setting<Option<PathBuf>>,
    /// Accelerator.
    pub accelerator: Setting<AcceleratorSetting>,
    /// From the start of the VMM to the first answer of the guest.
    pub boot_timeout: Setting<Duration>,
    /// Log filter of the daemon, in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: Setting<String>,
    /// Idle time before an instance that asks for nothing else is paused.
    pub pause_after: Setting<Duration>,
    /// Paused time before an instance that asks for nothing else is hibernated.
    pub hibernate_after: Setting<Duration>,
    /// Memory that all VMs may have together.
    pub ram_budget: Setting<RamBudget>,
    /// Address of the HTTP router; a loopback address. Port 0 means any free one.
    pub router_addr: Setting<SocketAddr>,
    /// Where the master key of the secrets is.
    pub key_store: Setting<KeyStoreSetting>,
    /// Whether templates are made and used.
    pub templates: Setting<TemplatesSetting>,
    /// Disk space of all templates, in MiB.
    pub templates_max_mib: Setting<u64>,
    /// Templates that were not used for this time are deleted.
    pub templates_max_age: Setting<Duration>,
    /// Size from which a log goes on in a new file, in MiB.
    pub log_max_mib: Setting<u64>,
    /// Older files that are kept of each log.
    pub log_files: Setting<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_memory: Setting::default_value(Mib::DEFAULT),
            default_disk: Setting::default_value(DiskSize::DEFAULT),
            default_vcpus: Setting::default_value(Vcpus::DEFAULT),
            default_image: Setting::default_value(ImageName::parse("base").expect("a valid name")),
            pull: Setting::default_value(PullPolicy::Missing),
            mirrors: Setting::default_value(Mirrors::default()),
            ca_file: Setting::default_value(None),
            accelerator: Setting::default_value(AcceleratorSetting::Auto),
            boot_timeout: Setting::default_value(Duration::from_secs(60)),
            log: Setting::default_value("info".to_owned()),
            pause_after: Setting::default_value(Duration::from_secs(60)),
            hibernate_after: Setting::default_value(Duration::from_secs(5 * 60)),
            ram_budget: Setting::default_value(RamBudget::Auto),
            router_addr: Setting::default_value(SocketAddr::from((Ipv4Addr::LOCALHOST, 8099))),
            key_store: Setting::default_value(KeyStoreSetting::File),
            templates: Setting::default_value(TemplatesSetting::Auto),
            templates_max_mib: Setting::default_value(2048),
            templates_max_age: Setting::default_value(Duration::from_secs(14 * 24 * 3600)),
            log_max_mib: Setting::default_value(10),
            log_files: Setting::default_value(3),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    default_memory_mb: Option<Mib>,
    default_disk_mb: Option<DiskSize>,
    default_cpus: Option<Vcpus>,
    default_image: Option<ImageName>,
    #[serde(default, deserialize_with = "from_text")]
    accelerator: Option<AcceleratorSetting>,
    #[serde(default, deserialize_with = "from_boot_timeout")]
    boot_timeout: Option<Duration>,
    log: Option<String>,
    #[serde(default, deserialize_with = "from_duration")]
    pause_after: Option<Duration>,
    #[serde(default, deserialize_with = "from_duration")]
    hibernate_after: Option<Duration>,
    #[serde(default, deserialize_with = "from_text_or_number")]
    ram_budget_mb: Option<RamBudget>,
    #[serde(default, deserialize_with = "from_loopback")]
    router_addr: Option<SocketAddr>,
    secrets: Option<SecretsTable>,
    images: Option<ImagesTable>,
    #[serde(default, deserialize_with = "from_text")]
    templates: Option<TemplatesSetting>,
    templates_max_mb: Option<u64>,
    #[serde(default, deserialize_with = "from_duration")]
    templates_max_age: Option<Duration>,
    #[serde(default, deserialize_with = "from_log_size")]
    log_max_mb: Option<u64>,
    #[serde(default, deserialize_with = "from_log_files")]
    log_files: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SecretsTable {
    #[serde(default, deserialize_with = "from_text")]
    key_store: Option<KeyStoreSetting>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ImagesTable {
    pull: Option<PullPolicy>,
    mirrors: Option<Mirrors>,
    #[serde(default, deserialize_with = "from_path")]
    ca_file: Option<Option<PathBuf>>,
}

/// Keys of the file: name, environment variable of the same meaning, an example, which is the default.
#[cfg(test)]
pub(crate) const KEYS: [(&str, &str, &str); 20] = [
    ("default_memory_mb", env::DEFAULT_MEMORY_MB, "512"),
    ("default_disk_mb", env::DEFAULT_DISK_MB, "10240"),
    ("default_cpus", env::DEFAULT_CPUS, "1"),
    ("default_image", env::DEFAULT_IMAGE, "\"base\""),
    ("accelerator", env::ACCEL, "\"auto\""),
    ("boot_timeout", env::BOOT_TIMEOUT, "\"60s\""),
    ("log", env::LOG, "\"info\""),
    ("pause_after", env::PAUSE_AFTER, "\"60s\""),
    ("hibernate_after", env::HIBERNATE_AFTER, "\"5m\""),
    ("ram_budget_mb", env::RAM_BUDGET_MB, "\"auto\""),
    ("router_addr", env::ROUTER_ADDR, "\"127.0.0.1:8099\""),
    ("secrets.key_store", env::SECRETS_KEY_STORE, "\"file\""),
    ("images.pull", env::PULL, "\"missing\""),
    ("images.mirrors", env::MIRRORS, "{}"),
    ("images.ca_file", env::CA_FILE, "\"\""),
    ("templates", env::TEMPLATES, "\"auto\""),
    ("templates_max_mb", env::TEMPLATES_MAX_MB, "2048"),
    ("templates_max_age", env::TEMPLATES_MAX_AGE, "\"14d\""),
    ("log_max_mb", env::LOG_MAX_MB, "10"),
    ("log_files", env::LOG_FILES, "3"),
];

fn from_text<'de, D, T>(d: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err = String>,
{
    String::deserialize(d)?.parse().map(Some).map_err(serde::de::Error::custom)
}

fn from_text_or_number<'de, D, T>(d: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err = String>,
{
    let text = match toml::Value::deserialize(d)? {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        other => {
            return Err(serde::de::Error::custom(format!("{} is neither text nor number", other.type_str())));
        }
    };
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

fn from_path<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Option<PathBuf>>, D::Error> {
    absolute(&String::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

/// Nothing is no file. Whoever reads the settings need not be where whoever wrote them was.
fn absolute(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        "" => Ok(None),
        text if text.starts_with('/') => Ok(Some(text.into())),
        text => Err(format!("`{text}` is no absolute path")),
    }
}

fn from_duration<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    duration(&String::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

fn from_boot_timeout<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    boot_timeout(&String::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

fn from_loopback<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    loopback(&String::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

fn from_log_size<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    log_size(u64::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

fn from_log_files<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    log_files(u64::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

/// A terabyte is more than anybody reads.
fn log_size(mib: u64) -> Result<u64, String> {
    if (1..=1 << 20).contains(&mib) { Ok(mib) } else { Err(format!("a log has 1 to 1048576 MiB, not {mib}")) }
}

fn log_files(count: u64) -> Result<u32, String> {
    let few = u32::try_from(count).ok().filter(|count| (1..=100).contains(count));
    few.ok_or_else(|| format!("1 to 100 older files are kept of a log, not {count}"))
}

/// Longer than anybody waits, and short enough for every clock.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|e| e.to_string())?;
    if duration > TIME_MAX { Err(format!("`{text}` is longer than 100 years")) } else { Ok(duration) }
}

/// Instances trust who reaches their ports, so nobody but this machine does.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("router address `{text}` is no address with a port: write it like `127.0.0.1:8099` or `[::1]:8099`")
    })?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!("router address `{text}` can be reached from other machines: use `127.0.0.1` or `[::1]`"))
    }
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
        settings.default_disk.set_from_file(file.default_disk_mb);
        settings.default_vcpus.set_from_file(file.default_cpus);
        settings.default_image.set_from_file(file.default_image);
        settings.accelerator.set_from_file(file.accelerator);
        settings.boot_timeout.set_from_file(file.boot_timeout);
        settings.log.set_from_file(file.log);
        settings.pause_after.set_from_file(file.pause_after);
        settings.hibernate_after.set_from_file(file.hibernate_after);
        settings.ram_budget.set_from_file(file.ram_budget_mb);
        settings.router_addr.set_from_file(file.router_addr);
        let images = file.images.unwrap_or_default();
        settings.pull.set_from_file(images.pull);
        settings.mirrors.set_from_file(images.mirrors);
        settings.ca_file.set_from_file(images.ca_file);
        settings.key_store.set_from_file(file.secrets.and_then(|secrets| secrets.key_store));
        settings.templates.set_from_file(file.templates);
        settings.templates_max_mib.set_from_file(file.templates_max_mb);
        settings.templates_max_age.set_from_file(file.templates_max_age);
        settings.log_max_mib.set_from_file(file.log_max_mb);
        settings.log_files.set_from_file(file.log_files);

        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is not a number"));
        settings.default_memory.set_from_env(vars, env::DEFAULT_MEMORY_MB, |text| {
            Mib::new(number(text)?).map_err(|e| e.to_string())
        })?;
        settings.default_disk.set_from_env(vars, env::DEFAULT_DISK_MB, |text| {
            DiskSize::new(number(text)?).map_err(|e| e.to_string())
        })?;
        settings.default_vcpus.set_from_env(vars, env::DEFAULT_CPUS, |text| {
            Vcpus::new(number(text)?).map_err(|e| e.to_string())
        })?;
        settings.default_image.set_from_env(vars, env::DEFAULT_IMAGE, |text| {
            ImageName::parse(text).map_err(|e| e.to_string())
        })?;
        settings.pull.set_from_env(vars, env::PULL, |text| {
            text.parse().map_err(|e: aegis_types::UnknownPolicy| e.to_string())
        })?;
        settings.mirrors.set_from_env(vars, env::MIRRORS, str::parse)?;
        settings.ca_file.set_from_env(vars, env::CA_FILE, absolute)?;
        settings.accelerator.set_from_env(vars, env::ACCEL, str::parse)?;
        settings.boot_timeout.set_from_env(vars, env::BOOT_TIMEOUT, boot_timeout)?;
        settings.log.set_from_env(vars, env::LOG, |text| Ok(text.to_owned()))?;
        settings.pause_after.set_from_env(vars, env::PAUSE_AFTER, duration)?;
        settings.hibernate_after.set_from_env(vars, env::HIBERNATE_AFTER, duration)?;
        settings.ram_budget.set_from_env(vars, env::RAM_BUDGET_MB, str::parse)?;
        settings.router_addr.set_from_env(vars, env::ROUTER_ADDR, loopback)?;
        settings.key_store.set_from_env(vars, env::SECRETS_KEY_STORE, str::parse)?;
        settings.templates.set_from_env(vars, env::TEMPLATES, str::parse)?;
        settings.templates_max_mib.set_from_env(vars, env::TEMPLATES_MAX_MB, number)?;
        settings.templates_max_age.set_from_env(vars, env::TEMPLATES_MAX_AGE, duration)?;
        settings.log_max_mib.set_from_env(vars, env::LOG_MAX_MB, |text| log_size(number(text)?))?;
        settings.log_files.set_from_env(vars, env::LOG_FILES, |text| log_files(number(text)?))?;
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
    fn rest_router_and_templates_are_set_by_file_and_environment() {
        let (_dir, home) = home_with(
            "pause_after = \"5s\"\nram_budget_mb = 2048\nrouter_addr = \"[::1]:0\"\ntemplates = \"off\"\n\
             templates_max_mb = 10\ntemplates_max_age = \"1d\"\n",
        );
        let vars = table(&[("AEGIS_HIBERNATE_AFTER", "1m"), ("AEGIS_RAM_BUDGET_MB", "auto")]);
        let settings = Settings::load_in(&home, &vars).unwrap();
        assert_eq!(settings.pause_after.value, Duration::from_secs(5));
        assert_eq!(settings.hibernate_after.value, Duration::from_secs(60));
        let budget = Setting { value: RamBudget::Auto, source: Source::Env("AEGIS_RAM_BUDGET_MB") };
        assert_eq!(settings.ram_budget, budget);
        assert_eq!(settings.router_addr.value.to_string(), "[::1]:0");
        assert_eq!(settings.templates.value, TemplatesSetting::Off);
        assert_eq!(settings.templates_max_mib, Setting { value: 10, source: Source::File });
        assert_eq!(settings.templates_max_age.value, Duration::from_secs(24 * 3600));
        let settings = Settings::load_in(&home, &table(&[])).unwrap();
        assert_eq!(settings.ram_budget.value.mib(None), Some(2048));
    }

    #[test]
    fn pulls_and_mirrors_are_set_by_file_and_environment() {
        let (_dir, home) = home_with(
            "[images]\npull = \"always\"\n[images.mirrors]\n\"docker.io\" = [\"https://a.example\", \"http://127.0.0.1:5000/v2\"]\n",
        );
        let settings = Settings::load_in(&home, &table(&[])).unwrap();
        assert_eq!((settings.pull.value, settings.pull.source), (PullPolicy::Always, Source::File));
        let mirrors: Vec<_> = settings.mirrors.value.iter().collect();
        assert_eq!(mirrors, [("docker.io", "https://a.example"), ("docker.io", "http://127.0.0.1:5000/v2")]);
        assert_eq!(
            settings.mirrors.value.to_string(),
            "docker.io=https://a.example,docker.io=http://127.0.0.1:5000/v2"
        );
        let vars = table(&[("AEGIS_PULL", "never"), ("AEGIS_MIRRORS", "ghcr.io=https://m.example")]);
        let settings = Settings::load_in(&home, &vars).unwrap();
        assert_eq!(settings.pull.value, PullPolicy::Never);
        assert_eq!(settings.mirrors.value.to_string(), "ghcr.io=https://m.example");
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
            (
                "log = \"info\"\nrouter_addr = \"0.0.0.0:80\"\n",
                "line 2: router address `0.0.0.0:80` can be reached",
            ),
            ("router_addr = \"8099\"\n", "no address with a port"),
            ("ram_budget_mb = 1\n", "line 1: RAM budget: memory in MiB must be between"),
            ("ram_budget_mb = true\n", "boolean is neither text nor number"),
            ("pause_after = \"soon\"\n", "line 1: invalid duration `soon`"),
            ("hibernate_after = \"99999999d\"\n", "longer than 100 years"),
            ("templates = \"on\"\n", "unknown value `on` of templates: it is auto or off"),
            ("templates_max_mb = -1\n", "line 1"),
            (
                "[secrets]\nkey_store = \"cloud\"\n",
                "line 2: unknown key store `cloud`: it is file or keychain",
            ),
            ("images.ca_file = \"ca.pem\"\n", "`ca.pem` is no absolute path"),
            ("[images]\npull = \"often\"\n", "line 2: unknown variant `often`"),
            (
                "[images.mirrors]\n\"docker.io\" = [\"ftp://m\"]\n",
                "mirror `ftp://m` of docker.io must begin with `https://`",
            ),
            ("secrets.keystore = \"file\"\n", "unknown field `keystore`"),
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
            (
                "AEGIS_DEFAULT_DISK_MB",
                "10",
                "AEGIS_DEFAULT_DISK_MB: disk size in MiB must be between 64 and 1048576",
            ),
            ("AEGIS_DEFAULT_CPUS", "65", "AEGIS_DEFAULT_CPUS: number of CPUs must be between 1 and 64"),
            ("AEGIS_ACCEL", "KVM", "AEGIS_ACCEL: unknown accelerator `KVM`"),
            ("AEGIS_BOOT_TIMEOUT", "5", "AEGIS_BOOT_TIMEOUT: invalid duration `5`"),
            (
                "AEGIS_ROUTER_ADDR",
                "10.0.0.1:8099",
                "AEGIS_ROUTER_ADDR: router address `10.0.0.1:8099` can be reached",
            ),
            ("AEGIS_RAM_BUDGET_MB", "half", "AEGIS_RAM_BUDGET_MB: RAM budget `half` is neither"),
            ("AEGIS_PULL", "often", "AEGIS_PULL: unknown pull policy `often`"),
            ("AEGIS_MIRRORS", "docker.io", "AEGIS_MIRRORS: mirror `docker.io` is not REGISTRY=URL"),
            ("AEGIS_MIRRORS", "docker.io=https://u:p@m.example", "use `aegis registry login`"),
            ("AEGIS_TEMPLATES_MAX_MB", "2G", "AEGIS_TEMPLATES_MAX_MB: `2G` is not a number"),
        ] {
            let text = Settings::load_in(&home, &table(&[(name, value)])).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
