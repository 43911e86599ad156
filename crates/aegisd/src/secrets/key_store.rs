//! Where the master key is kept: a file of the home, or the keychain of the desktop. Everything here blocks.
//!
//! There are two places, so that a change of the key can be cut short at any point: the new key is put into the second
//! one before anything is encrypted with it, and takes the first one afterwards. Which of the two is right says the check in
//! the registry.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use zeroize::Zeroizing;

use super::cipher::{KEY_BYTES, MasterKey};
use crate::launcher::files;

/// The program that speaks with the Secret Service of the desktop; part of libsecret.
const SECRET_TOOL: &str = "secret-tool";
/// Time for a keychain to answer; it may have to ask the user.
const KEYCHAIN_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// More than any key as text, in bytes.
const OUTPUT_MAX: u64 = 4096;

/// One of the two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The key in use.
    Current,
    /// A key that is about to be.
    Next,
}

/// The key cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyStoreError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{place} is no master key: it has {found} bytes instead of {KEY_BYTES}")]
    Length { place: String, found: usize },
    #[error("cannot reach the keychain: {0}")]
    Keychain(String),
}

/// Keeps the master key.
pub(super) trait KeyStore: Send + Sync + 'static {
    /// Where the key in use is, for people.
    fn place(&self) -> String;
    /// `None`: there is none.
    fn load(&self, place: Place) -> Result<Option<MasterKey>, KeyStoreError>;
    /// Durable when it returns. Never replaces a key in use.
    fn store(&self, place: Place, key: &MasterKey) -> Result<(), KeyStoreError>;
    /// Makes the next key the one in use.
    fn promote(&self) -> Result<(), KeyStoreError>;
    /// Removes the next key.
    fn discard_next(&self) -> Result<(), KeyStoreError>;
}

/// Two files in the home, for the owner alone.
pub(super) struct KeyFile {
    current: PathBuf,
    next: PathBuf,
}

impl KeyFile {
    pub(super) fn new(current: PathBuf) -> Self {
        let next = with_suffix(&current, ".next");
        Self { current, next }
    }

    fn path(&self, place: Place) -> &Path {
        match place {
            Place::Current => &self.current,
            Place::Next => &self.next,
        }
    }

    fn flush_directory(&self) -> io::Result<()> {
        files::flush(self.current.parent().unwrap_or(Path::new("/")))
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyStoreError {
    let path = path.to_owned();
    move |source| KeyStoreError::File { action, path, source }
}

impl KeyStore for KeyFile {
    fn place(&self) -> String {
        self.current.display().to_string()
    }

    fn load(&self, place: Place) -> Result<Option<MasterKey>, KeyStoreError> {
        let path = self.path(place);
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 * KEY_BYTES));
        match File::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("open", path)(e)),
            Ok(file) => {
                file.take(OUTPUT_MAX).read_to_end(&mut bytes).map_err(failed("read", path))?;
            }
        }
        let key = MasterKey::from_bytes(&bytes);
        key.map(Some).ok_or(KeyStoreError::Length { place: path.display().to_string(), found: bytes.len() })
    }

    fn store(&self, place: Place, key: &MasterKey) -> Result<(), KeyStoreError> {
        let path = self.path(place);
        let fresh = with_suffix(path, ".new");
        // What was cut short was never in use.
        files::remove_file(&fresh).map_err(failed("remove", &fresh))?;
        let written =
            File::options().write(true).create_new(true).mode(0o600).open(&fresh).and_then(|mut file| {
                file.write_all(key.expose())?;
                file.sync_all()
            });
        written.map_err(failed("write", &fresh))?;
        let renamed = match place {
            Place::Current => {
                renameat_with(CWD, &fresh, CWD, path, RenameFlags::NOREPLACE).map_err(Into::into)
            }
            Place::Next => fs::rename(&fresh, path),
        };
        renamed.and_then(|()| self.flush_directory()).map_err(failed("make", path))
    }

    fn promote(&self) -> Result<(), KeyStoreError> {
        let renamed = fs::rename(&self.next, &self.current).and_then(|()| self.flush_directory());
        renamed.map_err(failed("replace", &self.current))
    }

    fn discard_next(&self) -> Result<(), KeyStoreError> {
        files::remove_file(&self.next).map_err(failed("remove", &self.next))
    }
}

/// The Secret Service of the desktop, through the program of libsecret. Keys are kept as text.
pub(super) struct Keychain {
    program: PathBuf,
    home: PathBuf,
}

impl Keychain {
    /// Keys of this home.
    pub(super) fn new(home: PathBuf) -> Self {
        Self { program: SECRET_TOOL.into(), home }
    }

    #[cfg(test)]
    fn with_program(home: PathBuf, program: PathBuf) -> Self {
        Self { program, home }
    }

    fn command(&self, verb: &str, place: Place) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb);
        if verb == "store" {
            command.arg("--label=AegisVM master key");
        }
        let place = if place == Place::Current { "current" } else { "next" };
        command.args(["service", "aegisvm", "key", place, "home"]).arg(&self.home);
        command
    }

    /// Exit code, output and complaints.
    fn run(
        &self,
        verb: &str,
        place: Place,
        input: &[u8],
    ) -> Result<(bool, Zeroizing<Vec<u8>>, String), KeyStoreError> {
        let failed = |e: io::Error| {
            let why = match e.kind() {
                ErrorKind::NotFound => format!("there is no program `{}`", self.program.display()),
                _ => e.to_string(),
            };
            KeyStoreError::Keychain(why)
        };
        let mut command = self.command(verb, place);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that fails early does not read: its exit says why.
            let _ = stdin.write_all(input);
        }
        let ended = wait(&mut child).map_err(failed)?;
        let (mut output, mut complaint) = (Zeroizing::new(Vec::with_capacity(256)), String::new());
        if let Some(stdout) = child.stdout.take() {
            stdout.take(OUTPUT_MAX).read_to_end(&mut output).map_err(failed)?;
        }
        if let Some(stderr) = child.stderr.take() {
            // Whatever it is, it is shown.
            let mut bytes = Vec::new();
            stderr.take(OUTPUT_MAX).read_to_end(&mut bytes).map_err(failed)?;
            complaint = String::from_utf8_lossy(&bytes).trim().to_owned();
        }
        Ok((ended, output, complaint))
    }

    fn must(&self, verb: &str, place: Place, input: &[u8]) -> Result<(), KeyStoreError> {
        match self.run(verb, place, input)? {
            (true, ..) => Ok(()),
            (false, _, complaint) => Err(KeyStoreError::Keychain(said(complaint))),
        }
    }
}

fn said(complaint: String) -> String {
    if complaint.is_empty() { format!("`{SECRET_TOOL}` failed without a word") } else { complaint }
}

/// Whether it succeeded. One that takes too long is killed. Its output fits into a pipe.
fn wait(child: &mut Child) -> io::Result<bool> {
    let deadline = Instant::now() + KEYCHAIN_DEADLINE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            let text = format!("it did not answer within {} s", KEYCHAIN_DEADLINE.as_secs());
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        thread::sleep(POLL);
    }
}

impl KeyStore for Keychain {
    fn place(&self) -> String {
        format!("the keychain (service `aegisvm`, home {})", self.home.display())
    }

    fn load(&self, place: Place) -> Result<Option<MasterKey>, KeyStoreError> {
        match self.run("lookup", place, b"")? {
            // How it says that there is none.
            (false, _, complaint) if complaint.is_empty() => Ok(None),
            (false, _, complaint) => Err(KeyStoreError::Keychain(complaint)),
            (true, output, _) => {
                let text = output.trim_ascii();
                let bytes = Zeroizing::new(STANDARD.decode(text).unwrap_or_default());
                let key = MasterKey::from_bytes(&bytes);
                key.map(Some).ok_or(KeyStoreError::Length { place: self.place(), found: bytes.len() })
            }
        }
    }

    fn store(&self, place: Place, key: &MasterKey) -> Result<(), KeyStoreError> {
        self.must("store", place, Zeroizing::new(STANDARD.encode(key.expose())).as_bytes())
    }

    fn promote(&self) -> Result<(), KeyStoreError> {
        // Not one step here, but harmless to repeat: until the next key is gone it is the one that the check knows.
        if let Some(key) = self.load(Place::Next)? {
            self.store(Place::Current, &key)?;
        }
        self.discard_next()
    }

    fn discard_next(&self) -> Result<(), KeyStoreError> {
        match self.run("clear", Place::Next, b"")? {
            (false, _, complaint) if !complaint.is_empty() => Err(KeyStoreError::Keychain(complaint)),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Keychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn same(a: Option<MasterKey>, b: &MasterKey) -> bool {
        a.is_some_and(|a| a.expose() == b.expose())
    }

    /// What both kinds have to do.
    fn keeps_two_keys(store: &dyn KeyStore) {
        let (first, second) = (MasterKey::random(), MasterKey::random());
        assert!(store.load(Place::Current).unwrap().is_none());
        store.store(Place::Current, &first).unwrap();
        store.store(Place::Next, &second).unwrap();
        assert!(same(store.load(Place::Current).unwrap(), &first));
        assert!(same(store.load(Place::Next).unwrap(), &second));
        store.promote().unwrap();
        assert!(same(store.load(Place::Current).unwrap(), &second));
        assert!(store.load(Place::Next).unwrap().is_none());
        store.store(Place::Next, &first).unwrap();
        store.discard_next().unwrap();
        store.discard_next().unwrap();
        assert!(store.load(Place::Next).unwrap().is_none());
    }

    #[test]
    fn files_keep_two_keys_for_the_owner_alone_and_never_replace_one_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let store = KeyFile::new(path.clone());
        // Left by a crash in the middle of a write.
        fs::write(dir.path().join("master.key.new"), "half").unwrap();
        keeps_two_keys(&store);
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes.len(), fs::metadata(&path).unwrap().permissions().mode() & 0o777), (32, 0o600));
        assert!(store.store(Place::Current, &MasterKey::random()).is_err());
        assert_eq!(fs::read(&path).unwrap(), bytes);
        fs::write(&path, &bytes[..31]).unwrap();
        let error = store.load(Place::Current).unwrap_err().to_string();
        assert!(error.contains("31 bytes instead of 32"), "{error}");
    }

    /// A stand-in for the program of libsecret, with a directory for the desktop's keychain.
    fn fake_tool(dir: &Path) -> PathBuf {
        let program = dir.join("secret-tool");
        let script = format!(
            "#!/bin/sh\nverb=$1; shift\ncase $1 in --label=*) shift;; esac\nfile={}/$1-$2-$3-$4\n\
             case $verb in\n store) cat > $file;;\n lookup) [ -e $file ] && cat $file;;\n clear) rm $file 2>/dev/null;;\nesac\n",
            dir.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    #[test]
    fn a_keychain_keeps_two_keys() {
        let dir = tempfile::tempdir().unwrap();
        let program = fake_tool(dir.path());
        keeps_two_keys(&Keychain::with_program("/home/x/.aegis".into(), program));
    }

    #[test]
    fn a_keychain_that_cannot_be_reached_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("secret-tool");
        let keychain = Keychain::with_program("/home/x/.aegis".into(), program.clone());
        let error = keychain.load(Place::Current).unwrap_err().to_string();
        assert!(error.contains("there is no program"), "{error}");
        fs::write(&program, "#!/bin/sh\necho 'Cannot autolaunch D-Bus' >&2\nexit 1\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        for error in [
            keychain.load(Place::Current).map(|_| ()).unwrap_err(),
            keychain.store(Place::Current, &MasterKey::random()).unwrap_err(),
            keychain.promote().unwrap_err(),
            keychain.discard_next().unwrap_err(),
        ] {
            assert!(error.to_string().contains("Cannot autolaunch D-Bus"), "{error}");
        }
    }
}
