//! Applying a greeting: clock, entropy and identity, before anything else runs.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use aegis_proto::hello::{GuestNetwork, Hello, SEED_MIN};
use tracing::warn;

use crate::sys::Sys;

/// Longest host name of the kernel, in bytes.
const HOSTNAME_MAX: usize = 64;
/// What comes before the name in a hosts file.
const HOSTS_OWN: &str = "127.0.1.1\t";
const RESOLVER: &str = "/etc/resolv.conf";
const HOSTNAME_DEFAULT: &str = "aegis";
/// As short as any name, because files grow more easily than they shrink.
const NOBODY: &str = "-";
const MACHINE_ID_DIGITS: usize = 32;

/// A greeting that must not be answered: the guest would run with a wrong clock or known random numbers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("the seed is not at least {SEED_MIN} bytes in hexadecimal")]
    Seed,
    #[error("cannot set the clock")]
    Clock(#[source] io::Error),
    #[error("cannot add entropy")]
    Entropy(#[source] io::Error),
}

/// Who this guest is, in the form the kernel and the files want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// A guest that becomes a template is nobody.
    name: Option<Name>,
    network: Option<GuestNetwork>,
    /// Length of the writable disk, when the guest was a template with a shorter one.
    pub(crate) disk_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    hostname: String,
    machine_id: Option<String>,
}

impl Identity {
    /// No template.
    pub(crate) fn is_somebody(&self) -> bool {
        self.name.is_some()
    }
}

/// Applies what needs no root file system and returns what does. The seed is overwritten in any case.
///
/// # Errors
/// See [`ApplyError`].
pub(crate) fn apply(sys: &dyn Sys, hello: &mut Hello) -> Result<Identity, ApplyError> {
    let seed = std::mem::take(&mut hello.seed).into_bytes();
    let applied = add_seed(sys, &seed);
    wipe(seed);
    applied?;
    sys.set_clock(Duration::from_nanos(hello.time_unix_ns)).map_err(ApplyError::Clock)?;
    let name = (!hello.template).then(|| Name {
        hostname: hostname(&hello.hostname),
        machine_id: Some(hello.machine_id.to_ascii_lowercase()).filter(|id| is_machine_id(id)),
    });
    if let Some(Name { hostname, .. }) = &name
        && let Err(error) = sys.set_hostname(hostname)
    {
        warn!("cannot set the host name: {error}");
    }
    Ok(Identity { name, network: hello.network.take(), disk_bytes: hello.disk_bytes })
}

fn add_seed(sys: &dyn Sys, hex: &[u8]) -> Result<(), ApplyError> {
    let seed = decode_hex(hex).filter(|seed| seed.len() >= SEED_MIN).ok_or(ApplyError::Seed)?;
    let added = sys.add_entropy(&seed).map_err(ApplyError::Entropy);
    wipe(seed);
    added
}

fn wipe(mut secret: Vec<u8>) {
    secret.fill(0);
    // Keeps the compiler from dropping the writes.
    std::hint::black_box(&secret);
}

fn decode_hex(hex: &[u8]) -> Option<Vec<u8>> {
    let (pairs, []) = hex.as_chunks::<2>() else { return None };
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    pairs.iter().map(|[high, low]| Some((digit(*high)? << 4) | digit(*low)?)).collect()
}

/// The name with everything replaced that a host name cannot have.
fn hostname(wanted: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
    let name: String = wanted.chars().take(HOSTNAME_MAX).map(allowed).collect();
    if name.is_empty() { HOSTNAME_DEFAULT.to_owned() } else { name }
}

fn is_machine_id(text: &str) -> bool {
    text.len() == MACHINE_ID_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Sets up the network, of which `in_force` is what has been done, and writes the identity to the root file system. A
/// read-only or odd `/etc` is the image's business.
pub(crate) fn settle(sys: &dyn Sys, identity: &Identity, in_force: &mut Option<GuestNetwork>) {
    match (&identity.network, &in_force) {
        (Some(network), _) => write_resolver(sys, network.gateway),
        // What the template has is wrong here.
        (None, Some(_)) => write_changed(sys, Path::new(RESOLVER), ""),
        (None, None) => {}
    }
    match set_up_network(sys, in_force.as_ref(), identity.network.as_ref()) {
        Ok(()) => in_force.clone_from(&identity.network),
        Err(error) => warn!("cannot set up the network: {error}"),
    }
    // A template has the files, as making them is most of the work.
    let nobody = Name { hostname: NOBODY.to_owned(), machine_id: Some("0".repeat(MACHINE_ID_DIGITS)) };
    let Name { hostname, machine_id } = identity.name.as_ref().unwrap_or(&nobody);
    write_changed(sys, Path::new("/etc/hostname"), &format!("{hostname}\n"));
    if let Some(machine_id) = machine_id {
        write_changed(sys, Path::new("/etc/machine-id"), &format!("{machine_id}\n"));
    }
    let path = Path::new("/etc/hosts");
    if !sys.exists(path) || sys.read_file(path).is_ok_and(|old| is_ours(&old)) {
        write_changed(sys, path, &hosts(hostname));
    }
}

/// The clone of a template has a network but for its hardware address, unless it is to have none.
fn set_up_network(sys: &dyn Sys, old: Option<&GuestNetwork>, new: Option<&GuestNetwork>) -> io::Result<()> {
    match (old, new) {
        (None, None) => Ok(()),
        (Some(old), None) => sys.remove_network(old),
        (Some(old), Some(new)) if old == new => Ok(()),
        (Some(old), Some(new)) if *new == (GuestNetwork { mac: new.mac.clone(), ..old.clone() }) => {
            sys.set_hardware_address(&new.mac).or_else(|_| sys.configure_network(new))
        }
        (_, Some(new)) => sys.configure_network(new),
    }
}

/// Names the name server. A link to a file that a service of the image would make leads nowhere here.
pub(crate) fn write_resolver(sys: &dyn Sys, server: Ipv4Addr) {
    let path = Path::new(RESOLVER);
    if let Err(error) = sys.remove_symlink(path) {
        warn!("cannot remove the link {RESOLVER}: {error}");
    }
    write_changed(sys, path, &format!("nameserver {server}\n"));
}

/// The hosts file of a machine with this name.
fn hosts(name: &str) -> String {
    format!("127.0.0.1\tlocalhost\n{HOSTS_OWN}{name}\n::1\tlocalhost ip6-localhost\n")
}

/// Whether we wrote this hosts file, for whatever name: a copy of the machine must not keep it.
fn is_ours(contents: &[u8]) -> bool {
    let text = String::from_utf8_lossy(contents);
    let name = text.lines().find_map(|line| line.strip_prefix(HOSTS_OWN));
    name.is_some_and(|name| text == hosts(name))
}

/// Unchanged files are left alone: a write costs a copy-up and a journal commit.
fn write_changed(sys: &dyn Sys, path: &Path, contents: &str) {
    if sys.read_file(path).is_ok_and(|old| old == contents.as_bytes()) {
        return;
    }
    if let Err(error) = sys.write_file(path, contents.as_bytes()) {
        warn!("cannot write {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_fit_the_kernel() {
        assert_eq!(hostname("web-1.a_b"), "web-1.a_b");
        assert_eq!(hostname("a b/ä\n"), "a-b---");
        assert_eq!(hostname(""), HOSTNAME_DEFAULT);
        assert_eq!(hostname(&"x".repeat(200)).len(), HOSTNAME_MAX);
    }

    #[test]
    fn hexadecimal_is_read_strictly() {
        assert_eq!(decode_hex(b"00fFa5"), Some(vec![0, 255, 0xa5]));
        for bad in [&b"0"[..], b"0g", b"+1", b" 1"] {
            assert_eq!(decode_hex(bad), None);
        }
    }

    #[test]
    fn only_an_untouched_hosts_file_is_ours() {
        assert!(is_ours(hosts("web").as_bytes()));
        for other in ["", "127.0.1.1\tweb\n", "127.0.0.1\tlocalhost\n"] {
            assert!(!is_ours(other.as_bytes()), "{other}");
        }
        assert!(!is_ours(format!("{}10.0.0.1\tdb\n", hosts("web")).as_bytes()));
    }
}
