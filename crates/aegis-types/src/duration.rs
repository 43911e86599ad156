//! The duration grammar of the command line and the API: `7d`, `24h`, `1h30m`, `90s`, `500ms`.

use std::time::Duration;

/// Text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration `{0}`: write it like `7d`, `24h`, `1h30m`, `90s` or `500ms`")]
pub struct InvalidDuration(String);

/// Parses a sequence of `<integer><unit>` with units `d`, `h`, `m`, `s` and `ms`.
///
/// # Errors
/// [`InvalidDuration`] for anything else, including an empty text, a missing unit and overflow.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    parse(text).ok_or_else(|| InvalidDuration(text.chars().take(40).collect()))
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..unit_len] {
            "d" => 86_400_000,
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(unit_ms)?))?;
        rest = &rest[unit_len..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_the_grammar_parse() {
        let hour = 3600;
        for (text, seconds) in
            [("7d", 7 * 24 * hour), ("24h", 24 * hour), ("1h30m", hour + 1800), ("90s", 90), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn everything_else_is_refused() {
        for bad in [
            "",
            "abc",
            "5",
            "h",
            "-1s",
            "1.5h",
            "1 h",
            "5x",
            "99999999999999999999d",
            "18446744073709551615d",
            "1hä",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
