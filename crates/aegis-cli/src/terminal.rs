//! The terminal that we run in, for a process that has one of its own.
//!
//! **Invariant:** a terminal in raw mode is put back on every way out that a program can see: the guard does it on a return,
//! and the panic hook on a panic, as release builds abort without dropping anything. Whoever begins raw mode listens for the
//! signals that would end us, and returns when one comes.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, Once, PoisonError};

use aegis_types::TerminalSize;
use rustix::io::retry_on_intr;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::{CliError, Kind};

/// How the terminal was before raw mode, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

/// Standard input is a terminal in raw mode, until this is dropped: every key is input, and nothing is echoed.
pub(crate) struct RawMode(());

impl RawMode {
    pub(crate) fn begin() -> Result<Self, CliError> {
        Self::begin_raw()
            .map_err(|e| CliError::failure("cannot prepare the terminal").because(&io::Error::from(e)))
    }

    fn begin_raw() -> rustix::io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        PANIC_HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                previous(info);
            }));
        });
        // Known before anything changes, and dropped if that fails.
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = Self(());
        set(&raw)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Ends raw mode. Idempotent.
fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs nothing.
        let _ = set(&before);
    }
}

/// Does not wait for output, which a stopped terminal may hold up for ever.
fn set(termios: &Termios) -> rustix::io::Result<()> {
    retry_on_intr(|| tcsetattr(io::stdin(), OptionalActions::Now, termios))
}

/// Fails unless standard input is a terminal. The hint says what to do without one.
pub(crate) fn required(hint: &str) -> Result<(), CliError> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(CliError::new(Kind::Usage, "the input device is not a terminal").hint(hint))
}

/// What is said of a size that nobody knows.
pub(crate) const UNKNOWN: TerminalSize = TerminalSize { rows: 0, cols: 0 };

/// Its size: of the one that shows our output, or else of the one that our input comes from. A terminal that is gone has none.
pub(crate) fn size() -> Option<TerminalSize> {
    let sizes = [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin())];
    let known = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0)?;
    Some(TerminalSize { rows: known.ws_row, cols: known.ws_col })
}

/// Adds the kind of our terminal to the variables of a command that has one, unless they name another.
pub(crate) fn name_in(env: &mut BTreeMap<String, String>) {
    // It describes the terminal and not how AegisVM is set up.
    if let Ok(term) = env::var("TERM")
        && !term.is_empty()
    {
        env.entry("TERM".to_owned()).or_insert(term);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use aegis_e2e::pty::Pty;
    use aegis_e2e::wait_exit;
    use rustix::termios::LocalModes;

    use super::*;

    #[test]
    fn a_panic_that_drops_nothing_gives_the_terminal_back() {
        let pty = Pty::new(24, 80);
        let modes = pty.modes();
        let mut panics = std::process::Command::new(env::current_exe().unwrap());
        panics.args(["--ignored", "--nocapture", "--exact", "terminal::tests::panics"]);
        let mut child = pty.command(&panics).spawn().unwrap();
        pty.shows(b"echo: false");
        assert_eq!(wait_exit(&mut child).code(), Some(101));
        assert_eq!(pty.modes(), modes);
    }

    #[test]
    #[ignore = "this is the program that panics, started by another test in a terminal"]
    fn panics() {
        std::mem::forget(RawMode::begin().unwrap());
        panic!("echo: {}", tcgetattr(io::stdin()).unwrap().local_modes.contains(LocalModes::ECHO));
    }

    #[test]
    fn a_variable_that_is_given_is_kept() {
        let mut env = BTreeMap::from([("TERM".to_owned(), "dumb".to_owned())]);
        name_in(&mut env);
        assert_eq!(env["TERM"], "dumb");
    }
}
