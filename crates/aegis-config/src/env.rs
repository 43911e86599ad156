//! Every environment variable of AegisVM.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use aegis_types::Proxies;

macro_rules! variables {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal,)+) => {
        $($(#[doc = $doc])+ pub const $name: &str = $value;)+

        /// Every variable with its description, for the reference.
        pub const ALL: &[(&str, &str)] = &[$(($value, concat!($($doc),+))),+];
    };
}

variables! {
    /// Home directory of AegisVM: socket, registry, images, logs. Default `~/.aegis`.
    HOME = "AEGIS_HOME",
    /// Log filter of the daemon, such as `info` or `aegisd=debug`.
    LOG = "AEGIS_LOG",
    /// Guest kernel.
    KERNEL = "AEGIS_KERNEL",
    /// Guest initramfs.
    INITRAMFS = "AEGIS_INITRAMFS",
    /// Image `base`.
    BASE_IMAGE = "AEGIS_BASE_IMAGE",
    /// Empty file system from which the disks of instances are copied.
    DISK_TEMPLATE = "AEGIS_DISK_TEMPLATE",
    /// QEMU program.
    QEMU = "AEGIS_QEMU",
    /// Program `aegis-vmm-worker`.
    WORKER = "AEGIS_WORKER",
    /// Program `aegisd`.
    DAEMON = "AEGIS_DAEMON",
    /// Program `aegis-bench`.
    BENCH = "AEGIS_BENCH",
    /// Whether the registry of an image is asked before the first boot of an instance: `missing`, `always` or `never`.
    PULL = "AEGIS_PULL",
    /// Mirrors that are asked before a registry, such as `docker.io=https://mirror.example.com`, separated by commas.
    MIRRORS = "AEGIS_MIRRORS",
    /// Certificates (PEM) of authorities that are trusted for registries beside those of the system.
    CA_FILE = "AEGIS_CA_FILE",
    /// Accelerator: `auto`, `kvm`, `hvf` or `tcg`.
    ACCEL = "AEGIS_ACCEL",
    /// Memory of instances that ask for none, in MiB.
    DEFAULT_MEMORY_MB = "AEGIS_DEFAULT_MEMORY_MB",
    /// Disk of instances that ask for none, in MiB.
    DEFAULT_DISK_MB = "AEGIS_DEFAULT_DISK_MB",
    /// Virtual CPUs of instances that ask for none.
    DEFAULT_CPUS = "AEGIS_DEFAULT_CPUS",
    /// Image of instances that ask for none.
    DEFAULT_IMAGE = "AEGIS_DEFAULT_IMAGE",
    /// How long a boot may take, such as `60s`.
    BOOT_TIMEOUT = "AEGIS_BOOT_TIMEOUT",
    /// Idle time before an instance is paused, such as `60s`.
    PAUSE_AFTER = "AEGIS_PAUSE_AFTER",
    /// Paused time before an instance is hibernated, such as `5m`.
    HIBERNATE_AFTER = "AEGIS_HIBERNATE_AFTER",
    /// Memory that all VMs may have together, in MiB; `auto` is half of the host's.
    RAM_BUDGET_MB = "AEGIS_RAM_BUDGET_MB",
    /// Loopback address and port of the HTTP router; port 0 takes any free one.
    ROUTER_ADDR = "AEGIS_ROUTER_ADDR",
    /// Where the master key of the secrets is: `file` or `keychain`.
    SECRETS_KEY_STORE = "AEGIS_SECRETS_KEY_STORE",
    /// Whether templates are made and used: `auto` or `off`.
    TEMPLATES = "AEGIS_TEMPLATES",
    /// Disk space of all templates, in MiB; the least recently used ones are deleted beyond it.
    TEMPLATES_MAX_MB = "AEGIS_TEMPLATES_MAX_MB",
    /// Templates that were not used for this time are deleted, such as `14d`.
    TEMPLATES_MAX_AGE = "AEGIS_TEMPLATES_MAX_AGE",
    /// Size from which a log goes on in a new file, in MiB: that of the daemon, and that of each instance.
    LOG_MAX_MB = "AEGIS_LOG_MAX_MB",
    /// Older files that are kept of each log.
    LOG_FILES = "AEGIS_LOG_FILES",
}

/// Proxies of the host, as programs know them: each in lower case first, then in upper case.
const PROXIES: [(&str, &str); 3] =
    [("http_proxy", "HTTP_PROXY"), ("https_proxy", "HTTPS_PROXY"), ("no_proxy", "NO_PROXY")];

/// The user's home directory, for the default of [`HOME`].
pub(crate) const USER_HOME: &str = "HOME";
/// Where programs are looked for.
pub const PATH: &str = "PATH";
/// Directory of Docker's settings; `~/.docker` when it is not set.
const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
/// Where the user's settings are; `~/.config` when it is not set.
pub(crate) const CONFIG_HOME: &str = "XDG_CONFIG_HOME";

type Lookup = dyn Fn(&str) -> Option<OsString> + Send + Sync;

/// Where variables are read from: the process, or a table in tests.
#[derive(Clone)]
pub struct Environment(Arc<Lookup>);

impl Environment {
    /// How the host reaches the internet.
    pub fn proxies(&self) -> Proxies {
        let [http, https, no] = PROXIES.map(|(lower, upper)| {
            let value = (self.0)(lower).or_else(|| (self.0)(upper))?;
            value.into_string().ok().filter(|value| !value.trim().is_empty())
        });
        Proxies { http, https, no }
    }

    /// The environment of this process.
    pub fn process() -> Self {
        Self::from_fn(|name| std::env::var_os(name))
    }

    /// Variables from a function.
    pub fn from_fn(lookup: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static) -> Self {
        Self(Arc::new(lookup))
    }

    /// A variable. One that is set to nothing counts as not set, as scripts clear variables that way.
    pub fn get(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// The directory for the user's settings of all programs.
    pub fn config_dir(&self) -> Option<PathBuf> {
        self.path(CONFIG_HOME).or_else(|| self.path(USER_HOME).map(|home| home.join(".config")))
    }

    /// Docker's settings, where other programs keep credentials for registries.
    pub fn docker_config(&self) -> Option<PathBuf> {
        let dir = self.path(DOCKER_CONFIG).or_else(|| Some(self.path(USER_HOME)?.join(".docker")))?;
        Some(dir.join("config.json"))
    }

    /// The user's home directory.
    pub fn user_home(&self) -> Option<PathBuf> {
        self.path(USER_HOME)
    }

    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

#[cfg(test)]
pub(crate) fn table(vars: &[(&str, &str)]) -> Environment {
    let vars: std::collections::HashMap<String, OsString> =
        vars.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    Environment::from_fn(move |name| vars.get(name).cloned())
}
