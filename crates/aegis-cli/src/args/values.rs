//! Values of options, checked while the command line is read.

use std::path::PathBuf;
use std::time::Duration;

use aegis_types::{
    DiskSize, IdlePolicy, Mib, Mount, NetPolicy, SecretName, SecretUse, Vcpus, parse_duration,
};
use jiff::Timestamp;

/// Longer than anybody waits, and short enough for every clock.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it is not a number".to_owned())
}

pub(super) fn memory(text: &str) -> Result<Mib, String> {
    Mib::new(number(text)?).map_err(|e| e.to_string())
}

/// A number of MiB, or one with a unit. Units are powers of 1024, however they are spelled.
pub(super) fn disk(text: &str) -> Result<DiskSize, String> {
    let unknown = || "write a number of MiB, or one with K, M, G or T such as `10G`".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits);
    let number: u64 = digits.parse().map_err(|_| unknown())?;
    let unit = unit.to_ascii_uppercase();
    let kib: u64 = match unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit) {
        "K" => 1,
        "M" => 1 << 10,
        "G" => 1 << 20,
        "T" => 1 << 30,
        "" if unit.is_empty() => 1 << 10,
        _ => return Err(unknown()),
    };
    let kib = number.checked_mul(kib).ok_or("it is too large")?;
    if !kib.is_multiple_of(1 << 10) {
        return Err("it must be a whole number of MiB".to_owned());
    }
    DiskSize::new(kib >> 10).map_err(|e| e.to_string())
}

pub(super) fn cpus(text: &str) -> Result<Vcpus, String> {
    Vcpus::new(number(text)?).map_err(|e| e.to_string())
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        None => Err("use K=V; a secret is given to an instance when it is created".to_owned()),
        Some(("", _)) => Err("the name before `=` is empty".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
    }
}

/// What `--env` of an instance says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Variable {
    Literal(String, String),
    Secret(SecretUse),
}

/// `KEY` and `*` are secrets, and so is `K=secret.NAME`; the first need not be stored.
pub(super) fn variable_or_secret(text: &str) -> Result<Variable, String> {
    let wanted = match text.split_once('=') {
        Some((_, value)) if !value.starts_with("secret.") => {
            return variable(text).map(|(name, value)| Variable::Literal(name, value));
        }
        Some(_) => text.parse().map_err(|e| format!("{e}; `--env-literal` takes any value as it is")),
        None if text == "*" => Ok(SecretUse::All),
        None => {
            let name = SecretName::parse(text).map_err(|e| e.to_string())?;
            SecretUse::same(name, true).map_err(|e| e.to_string())
        }
    };
    wanted.map(Variable::Secret)
}

pub(super) fn guest_dir(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("it must start with `/`".to_owned()) }
}

/// Whether there is such a user only the guest knows.
pub(super) fn user(text: &str) -> Result<String, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, "root"));
    let is_name = |name: &str| {
        !name.is_empty() && !name.contains([':', '/', '\0']) && !name.contains(char::is_whitespace)
    };
    if is_name(user) && is_name(group) {
        Ok(text.to_owned())
    } else {
        Err("write it as USER or USER:GROUP, with names or numbers".to_owned())
    }
}

/// What `--workspace` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workspace {
    /// A name, or an absolute path.
    pub(crate) source: String,
    pub(crate) read_only: bool,
}

pub(super) fn workspace(text: &str) -> Result<Workspace, String> {
    let (source, read_only) = read_only(text);
    let is_path = source.contains('/') || source.starts_with('.');
    match source {
        "" => Err("it is empty".to_owned()),
        "~" => Err(HOME_HINT.to_owned()),
        path if is_path => {
            let path = absolute(path)?;
            let source = path.into_os_string().into_string().map_err(|_| "its path is not valid UTF-8")?;
            Ok(Workspace { source, read_only })
        }
        name => Ok(Workspace { source: name.to_owned(), read_only }),
    }
}

pub(super) fn mount(text: &str) -> Result<Mount, String> {
    let (text, read_only) = read_only(text);
    let colon = text.rfind(":/").ok_or("write it as HOST:GUEST or HOST:GUEST:ro, with an absolute GUEST")?;
    let (host, guest) = (&text[..colon], &text[colon + 1..]);
    if host.is_empty() {
        return Err("the directory of this machine is missing".to_owned());
    }
    let guest = guest.parse().map_err(|e: aegis_types::InvalidMountPoint| e.to_string())?;
    Ok(Mount { host: absolute(host)?, guest, read_only })
}

const HOME_HINT: &str = "the shell has left the `~` as it is: write `$HOME`";

fn read_only(text: &str) -> (&str, bool) {
    match text.strip_suffix(":ro") {
        Some(source) => (source, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    }
}

/// As seen from where the user is, which the daemon does not know.
fn absolute(path: &str) -> Result<PathBuf, String> {
    if path == "~" || path.starts_with("~/") {
        return Err(HOME_HINT.to_owned());
    }
    std::path::absolute(path).map_err(|e| e.to_string())
}

/// Checked alone here, and with the others later.
pub(super) fn net(text: &str) -> Result<String, String> {
    NetPolicy::parse(&[text]).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

pub(super) fn time(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(time) if time > TIME_MAX => Err("it is longer than 100 years".to_owned()),
        other => other.map_err(|e| e.to_string()),
    }
}

pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        time => Ok(time),
    }
}

/// The daemon reads the same grammar, so the text is passed on once it is known to be right.
pub(super) fn duration_text(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        return Timestamp::now().checked_sub(ago).map_err(|_| "it is too long ago".to_owned());
    }
    let example = "write a duration such as `10m` or a time such as `2026-01-31T12:00:00Z`";
    text.parse().map_err(|_| example.to_owned())
}

/// Options are spelled with hyphens; the API has an underscore.
pub(super) fn idle_policy(text: &str) -> Result<IdlePolicy, String> {
    let unknown = || format!("unknown idle policy `{text}`: it is default or leases-only");
    text.replace('-', "_").parse().map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn sizes_of_disks_have_units() {
        for (text, mib) in [
            ("300", 300),
            ("300M", 300),
            ("10G", 10 << 10),
            ("10g", 10 << 10),
            ("10GiB", 10 << 10),
            ("10gb", 10 << 10),
            ("1T", 1 << 20),
            ("131072K", 128),
        ] {
            assert_eq!(disk(text).map(DiskSize::get), Ok(mib), "{text}");
        }
        for bad in
            ["", "G", "-1G", "1.5G", "10X", "10iB", "10B", "10 G", "10GG", "1P", "٣G", "99999999999999999999"]
        {
            assert!(disk(bad).unwrap_err().starts_with("write a number of MiB"), "{bad:?}");
        }
        assert_eq!(disk("18446744073709551615G"), Err("it is too large".to_owned()));
        assert_eq!(disk("65537K"), Err("it must be a whole number of MiB".to_owned()));
        for out in ["63M", "0", "2T"] {
            assert!(
                disk(out).unwrap_err().starts_with("disk size in MiB must be between 64 and 1048576"),
                "{out}"
            );
        }
    }

    #[test]
    fn variables_split_at_the_first_equals_sign() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(variable("A="), Ok(("A".to_owned(), String::new())));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }

    #[test]
    fn variables_are_literal_or_secret() {
        let literal = |name: &str, value: &str| Ok(Variable::Literal(name.to_owned(), value.to_owned()));
        let secret = |text: &str| Ok(Variable::Secret(text.parse().unwrap()));
        assert_eq!(variable_or_secret("A=b=c"), literal("A", "b=c"));
        assert_eq!(variable_or_secret("A="), literal("A", ""));
        assert_eq!(variable_or_secret("A=secretive"), literal("A", "secretive"));
        assert_eq!(variable_or_secret("KEY"), secret("KEY?"));
        assert_eq!(variable_or_secret("*"), secret("*"));
        assert_eq!(variable_or_secret("A=secret.db.pass"), secret("A=secret.db.pass"));
        for bad in ["", "=b", "a.b", "A=secret.", "a-b=secret.x"] {
            assert!(variable_or_secret(bad).is_err(), "{bad:?}");
        }
        let error = variable_or_secret("A=secret.a b").unwrap_err();
        assert!(error.ends_with("`--env-literal` takes any value as it is"), "{error}");
    }

    #[test]
    fn workspaces_are_names_or_paths() {
        let here = std::env::current_dir().unwrap();
        let parsed = |text: &str| workspace(text).map(|parsed| (parsed.source, parsed.read_only));
        assert_eq!(parsed("app"), Ok(("app".to_owned(), false)));
        assert_eq!(parsed("app:ro"), Ok(("app".to_owned(), true)));
        assert_eq!(parsed("/srv/x:rw"), Ok(("/srv/x".to_owned(), false)));
        assert_eq!(parsed("./code:ro"), Ok((here.join("code").to_str().unwrap().to_owned(), true)));
        assert_eq!(parsed("."), Ok((here.to_str().unwrap().to_owned(), false)));
        assert!(
            parsed("").is_err() && parsed(":ro").is_err() && parsed("~/x").is_err() && parsed("~").is_err()
        );
    }

    #[test]
    fn mounts_have_two_paths() {
        let here = std::env::current_dir().unwrap();
        let parsed = mount("data:/data:ro").unwrap();
        assert_eq!(
            (parsed.host, parsed.guest.as_str(), parsed.read_only),
            (here.join("data"), "/data", true)
        );
        assert_eq!(mount("/a:b:/c").unwrap().host, PathBuf::from("/a:b"));
        for bad in ["/a", "/a:", "/a:b", ":/b", "/a:/", "/a:/proc", "~/a:/b"] {
            assert!(mount(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_an_upper_bound_and_timeouts_a_lower_one() {
        assert_eq!(time("0s"), Ok(Duration::ZERO));
        assert!(time("99999d").is_err() && timeout("99999d").is_err() && timeout("0s").is_err());
    }

    #[test]
    fn idle_policies_have_both_spellings() {
        for text in ["leases-only", "leases_only"] {
            assert_eq!(idle_policy(text), Ok(IdlePolicy::LeasesOnly));
        }
        assert!(idle_policy("never").is_err());
    }
}
