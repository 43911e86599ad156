//! `aegis logs`.

use std::io::IsTerminal as _;

use aegis_api::{LogEntry, LogSource, LogStream};
use aegis_client::LogQuery;
use anstyle::Style;

use super::Context;
use crate::args::Logs;
use crate::error::CliError;
use crate::guest_output::GuestOutput;
use crate::suggest::explain;
use crate::ui;

pub(crate) async fn run(context: &Context, args: Logs) -> Result<(), CliError> {
    let target = args.target.target.as_str();
    if args.console {
        return match context.client.console(target).await {
            Ok(text) => ui::print_bytes(&text),
            Err(error) => Err(explain(&context.client, target, error).await),
        };
    }
    let query = LogQuery {
        follow: args.follow,
        attach: false,
        since: args.since,
        tail: args.tail,
        exec_id: args.exec_id,
    };
    let mut entries = match context.client.logs(target, &query).await {
        Ok(entries) => entries,
        Err(error) => return Err(explain(&context.client, target, error).await),
    };
    let mut output = GuestOutput::new();
    let mut lines = Lines::new();
    loop {
        let entry = tokio::select! {
            biased;
            entry = entries.next() => entry,
            flushed = output.flush(), if output.is_pending() => {
                flushed.map_err(|e| ui::output_error(&e))?;
                continue;
            }
        };
        match entry {
            Ok(Some(entry)) => {
                let text = lines.format(&entry);
                output.write(entry.stream, &text).await.map_err(|e| ui::output_error(&e))?;
            }
            Ok(None) => return output.flush().await.map_err(|e| ui::output_error(&e)),
            Err(error) => {
                output.flush().await.map_err(|e| ui::output_error(&e))?;
                return Err(error.into());
            }
        }
    }
}

/// Marks lines that are not the instance's own.
struct Lines {
    colour_stdout: bool,
    colour_stderr: bool,
    /// Whose line has no end yet.
    open: Option<(LogSource, LogStream, Option<String>)>,
}

impl Lines {
    fn new() -> Self {
        let allowed = |choice| choice != anstream::ColorChoice::Never;
        let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
        Self {
            colour_stdout: stdout.is_terminal() && allowed(anstream::AutoStream::choice(&stdout)),
            colour_stderr: stderr.is_terminal() && allowed(anstream::AutoStream::choice(&stderr)),
            open: None,
        }
    }

    fn format(&mut self, entry: &LogEntry) -> Vec<u8> {
        let writer = (entry.source, entry.stream, entry.exec_id.clone());
        let mut text = Vec::new();
        let continues = self.open.as_ref() == Some(&writer);
        if !continues {
            if self.open.is_some() {
                text.push(b'\n');
            }
            text.extend_from_slice(self.prefix(entry).as_bytes());
        }
        text.extend_from_slice(&entry.bytes());
        self.open = entry.partial.then_some(writer);
        text
    }

    fn prefix(&self, entry: &LogEntry) -> String {
        let (name, style) = match entry.source {
            LogSource::Server => return String::new(),
            LogSource::Exec => ("[exec]", ui::CYAN),
            LogSource::System => ("[system]", ui::YELLOW),
        };
        let coloured = match entry.stream {
            LogStream::Stdout => self.colour_stdout,
            LogStream::Stderr => self.colour_stderr,
        };
        let style = if coloured { style } else { Style::new() };
        format!("{style}{name}{style:#} ")
    }
}

#[cfg(test)]
mod tests {
    use aegis_types::InstanceId;
    use jiff::Timestamp;

    use super::*;

    fn entry(source: LogSource, text: &str, partial: bool) -> LogEntry {
        let id = InstanceId::from_unix_nanos(1);
        LogEntry::output(Timestamp::UNIX_EPOCH, id, source, LogStream::Stdout, text.into(), partial)
    }

    #[test]
    fn pieces_of_one_line_have_one_prefix_and_other_lines_start_anew() {
        let mut lines = Lines { colour_stdout: false, colour_stderr: false, open: None };
        let entries = [
            entry(LogSource::Exec, "a", true),
            entry(LogSource::Exec, "b", true),
            entry(LogSource::Server, "c", false),
            entry(LogSource::System, "d", false),
        ];
        let text: Vec<u8> = entries.iter().flat_map(|entry| lines.format(entry)).collect();
        assert_eq!(String::from_utf8_lossy(&text), "[exec] ab\nc\n[system] d\n");
    }

    #[test]
    fn colours_only_mark_the_prefix() {
        let mut lines = Lines { colour_stdout: true, colour_stderr: false, open: None };
        let text = lines.format(&entry(LogSource::System, "d", false));
        assert_eq!(String::from_utf8_lossy(&text), "\u{1b}[33m[system]\u{1b}[0m d\n");
    }
}
