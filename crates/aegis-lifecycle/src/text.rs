//! Text that comes from elsewhere, made fit for a log line.

use std::error::Error;

/// Longest text that is kept of a guest's or worker's message, in characters.
const CHARS_MAX: usize = 1000;

/// One line of bounded length without control characters: a guest must not draw on the user's terminal.
pub(crate) fn bounded(text: &str) -> String {
    let mut line: String =
        text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    bounded(&text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_hostile_message_becomes_one_short_line() {
        assert_eq!(bounded("a\x1b[2J\nb"), "a [2J b");
        assert_eq!(bounded(&"ä".repeat(2000)).chars().count(), CHARS_MAX + 1);
    }
}
