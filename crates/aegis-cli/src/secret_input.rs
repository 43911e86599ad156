//! Where the value of a secret comes from: a hidden prompt, a pipe or a file.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;

use aegis_types::{SECRET_MAX, SecretBytes};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::CliError;
use crate::ui;

/// The content of a file, exactly.
pub(crate) fn file(path: &Path) -> Result<SecretBytes, CliError> {
    let read = File::open(path).and_then(all);
    let bytes = read.map_err(|e| CliError::failure(format!("cannot read {}", path.display())).because(&e))?;
    checked(bytes)
}

/// Standard input without its last newline; one line of it, after a prompt and unseen, if it is a terminal and there is a
/// prompt. Blocks.
pub(crate) fn standard_input(prompt: Option<String>) -> Result<SecretBytes, CliError> {
    let stdin = io::stdin();
    let read = match prompt {
        Some(prompt) if stdin.is_terminal() => {
            ui::eprint(&prompt);
            let _hidden = Hidden::begin();
            let line = line(stdin.lock());
            ui::eprint("\n");
            line
        }
        _ => all(stdin.lock()),
    };
    let mut bytes = read.map_err(|e| CliError::failure("cannot read standard input").because(&e))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    checked(bytes)
}

/// One byte more than what is kept is enough to know that it is too much.
fn all(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(SECRET_MAX + 2);
    source.take(SECRET_MAX as u64 + 2).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn line(mut source: impl io::BufRead) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    source.read_until(b'\n', &mut bytes)?;
    Ok(bytes)
}

fn checked(bytes: Vec<u8>) -> Result<SecretBytes, CliError> {
    let bytes = SecretBytes::new(bytes);
    if bytes.expose().len() > SECRET_MAX {
        return Err(CliError::failure(format!("the value is larger than {} KiB", SECRET_MAX >> 10)));
    }
    Ok(bytes)
}

/// The terminal does not show what is typed, until this is dropped.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// A prompt was given up: the terminal shows again what is typed.
pub(crate) fn show_again() {
    if let Ok(mut shown) = tcgetattr(io::stdin()) {
        shown.local_modes.insert(LocalModes::ECHO);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &shown);
        ui::eprint("\n");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_file_is_taken_exactly_and_only_if_it_is_small_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        std::fs::write(&path, b"\xff line\n").unwrap();
        assert_eq!(file(&path).unwrap().expose(), b"\xff line\n");
        std::fs::write(&path, vec![b'x'; SECRET_MAX + 1]).unwrap();
        assert_eq!(file(&path).unwrap_err().message(), "the value is larger than 64 KiB");
        assert!(file(&dir.path().join("none")).unwrap_err().message().contains("cannot read"));
    }
}
