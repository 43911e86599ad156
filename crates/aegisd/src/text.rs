//! Errors as text.

use std::error::Error;

/// The error and its sources, joined with colons.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The sources of the error, joined with colons.
pub(crate) fn cause(error: &dyn Error) -> Option<String> {
    error.source().map(chain)
}

/// Text of a guest made harmless for terminals: control characters become spaces, except newline and tab.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let keep = |c: char| !c.is_control() || c == '\n' || c == '\t';
    text.replace("\r\n", "\n").chars().map(|c| if keep(c) { c } else { ' ' }).collect()
}
