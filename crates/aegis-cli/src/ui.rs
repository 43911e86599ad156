//! Words on standard output and standard error. Colours reach terminals only, and none with `NO_COLOR`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use aegis_types::{SecretFile, SecretUse};
use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, Unit};
use serde::Serialize;

use crate::error::{CliError, Kind};

pub(crate) const RED: Style = AnsiColor::Red.on_default().bold();
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();
pub(crate) const CYAN: Style = AnsiColor::Cyan.on_default();
pub(crate) const BOLD: Style = Style::new().bold();

/// Writes text, which ends with a newline if it should, to standard output.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| output_error(&e))
}

/// Writes exact bytes to standard output.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| output_error(&e))
}

/// Writes a value as indented JSON to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| CliError::failure("cannot write the answer as JSON").because(&e))?;
    text.push('\n');
    print_bytes(text.as_bytes())
}

/// An object as one line of JSON.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, CliError> {
    let json = serde_json::to_string(value);
    json.map(|json| json + "\n").map_err(|e| CliError::failure("cannot write the answer as JSON").because(&e))
}

/// A failure to write our output.
pub(crate) fn output_error(error: &io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::new(Kind::BrokenPipe, "nobody reads the output"),
        _ => CliError::failure("cannot write the output").because(error),
    }
}

/// Writes a warning to standard error.
pub(crate) fn warn(text: &str) {
    eprint(&format!("{YELLOW}warning{YELLOW:#}: {text}\n"));
}

/// Writes an error to standard error.
pub(crate) fn report(error: &CliError) {
    if !error.kind().is_silent() {
        eprint(&render(error));
    }
}

/// Writes text to standard error. There is no way to report that reporting failed.
pub(crate) fn eprint(text: &str) {
    drop(anstream::stderr().lock().write_all(text.as_bytes()));
}

fn render(error: &CliError) -> String {
    let mut text = format!("{RED}error{RED:#}: {}\n", error.message());
    for (label, lines) in [("cause", error.causes()), ("hint", error.hints())] {
        for line in lines {
            // Further lines of a text are aligned below its first.
            let line = line.trim_end().replace('\n', &format!("\n{}", " ".repeat(label.len() + 4)));
            let _ = writeln!(text, "  {BOLD}{label}{BOLD:#}: {line}");
        }
    }
    text
}

/// Rows below a header, columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut text = line(header);
    text.extend(rows.iter().map(|row| line(std::array::from_fn(|i| row[i].as_str()))));
    text
}

/// `label: value` lines with aligned values. A value that begins with a newline stands below its label.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(label, _)| label.len() + 1).max().unwrap_or(0);
    let mut text = String::new();
    for (label, value) in fields {
        let label = format!("{label}:");
        let _ = match value.starts_with('\n') {
            true => writeln!(text, "{label}{value}"),
            false => writeln!(text, "{label:width$} {value}"),
        };
    }
    text
}

/// A time with the precision that people need.
pub(crate) fn time(time: Timestamp) -> String {
    time.round(Unit::Second).unwrap_or(time).to_string()
}

/// Which secrets an instance gets, or `None` if it gets none.
pub(crate) fn secrets(variables: &[SecretUse], files: &[SecretFile]) -> Option<String> {
    let texts = variables.iter().map(ToString::to_string).chain(files.iter().map(ToString::to_string));
    let text = texts.collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then_some(text)
}

/// A command line as people would type it.
pub(crate) fn command_line(command: &[String]) -> String {
    let quoted = command.iter().map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// A duration as users write it.
pub(crate) fn in_words(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}

/// A duration as the API has it.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A duration in the grammar of options and settings.
pub(crate) fn duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, ms) in UNITS {
        if rest >= ms {
            let _ = write!(text, "{}{unit}", rest / ms);
            rest %= ms;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A number of bytes with a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_needed_and_lines_end_at_their_text() {
        let rows = [["a".to_owned(), "-".to_owned()], ["longer".to_owned(), "x".to_owned()]];
        assert_eq!(table(["ID", "B"], &rows), "ID      B\na       -\nlonger  x\n");
    }

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["0s", "500ms", "1m", "1m30s", "5m", "14d", "1d1h1m1s1ms"] {
            assert_eq!(aegis_types::parse_duration(text).map(duration), Ok(text.to_owned()));
        }
    }

    #[test]
    fn command_lines_can_be_pasted_into_a_shell() {
        let command = ["sh", "-c", "echo it's", ""].map(str::to_owned);
        assert_eq!(command_line(&command), r"sh -c 'echo it'\''s' ''");
    }
}
