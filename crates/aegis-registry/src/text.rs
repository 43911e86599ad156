//! Text of others in messages of ours.

/// Longest piece of foreign text in a message, in characters.
const CHARS_MAX: usize = 200;

/// Foreign text on one line, printable and short.
pub(crate) fn printable(text: &str) -> String {
    let mut out: String = text.chars().take(CHARS_MAX).flat_map(shown).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

fn shown(c: char) -> impl Iterator<Item = char> {
    // Quotes and backslashes are harmless, and escaped they make messages hard to read.
    let plain = matches!(c, '"' | '\'' | '\\').then_some(c);
    let escaped = plain.is_none().then(|| c.escape_debug());
    plain.into_iter().chain(escaped.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_its_line() {
        assert_eq!(printable("a \"b\"\n\u{1b}[31m"), r#"a "b"\n\u{1b}[31m"#);
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), CHARS_MAX + 1);
    }
}
