//! The answer of `aegis doctor`, as text and as JSON.

use std::fmt::{Display, Write as _};

use serde::Serialize;

use crate::ui;

/// How good something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    /// It works, but the user should know.
    Warning,
    /// VMs cannot run.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    name: &'static str,
    level: Level,
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Check {
    pub(super) fn good(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, value: value.into(), problem: None, hint: None }
    }

    /// What to do about it.
    pub(super) fn into_hint(self) -> Option<String> {
        self.hint
    }

    /// It works, and something can be done about it.
    pub(super) fn odd(
        name: &'static str,
        value: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warning, ..Self::bad(name, value, problem, hint) }
    }

    /// It does not work.
    pub(super) fn bad(
        name: &'static str,
        value: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (problem, hint) = (Some(problem.into()), Some(hint.into()));
        Self { name, level: Level::Error, value: value.into(), problem, hint }
    }
}

/// A setting and where it came from.
#[derive(Debug, Serialize)]
pub(super) struct SettingLine {
    name: &'static str,
    value: String,
    source: String,
}

impl SettingLine {
    pub(super) fn new(name: &'static str, value: impl Display, source: impl Display) -> Self {
        Self { name, value: value.to_string(), source: source.to_string() }
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// VMs can run.
    pub(super) ok: bool,
    checks: Vec<Check>,
    settings: Vec<SettingLine>,
}

impl Report {
    pub(super) fn new(checks: Vec<Check>, settings: Vec<SettingLine>) -> Self {
        let ok = checks.iter().all(|check| check.level != Level::Error);
        Self { ok, checks, settings }
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{0}AegisVM{0:#}\n", ui::BOLD);
        let width = self.checks.iter().map(|check| check.name.len() + 1).max().unwrap_or(0);
        for check in &self.checks {
            let style = match check.level {
                Level::Ok => ui::GREEN,
                Level::Warning => ui::YELLOW,
                Level::Error => ui::RED,
            };
            let label = format!("{}:", check.name);
            let _ = writeln!(text, "{label:width$} {style}{}{style:#}", check.value);
            let indent = " ".repeat(width + 1);
            if let Some(problem) = &check.problem {
                let _ = writeln!(text, "{indent}{problem}");
            }
            if let Some(hint) = &check.hint {
                let _ = writeln!(text, "{indent}{0}hint{0:#}: {hint}", ui::BOLD);
            }
        }
        if !self.settings.is_empty() {
            text.push_str("Settings:\n");
            let row = |s: &SettingLine| [format!("  {}", s.name), s.value.clone(), format!("({})", s.source)];
            let rows: Vec<_> = self.settings.iter().map(row).collect();
            // The header row of a table is its first; here the settings need none.
            text.extend(ui::table(["", "", ""], &rows).split_inclusive('\n').skip(1));
        }
        text.push_str(if self.ok { "VMs can run.\n" } else { "VMs cannot run yet.\n" });
        text
    }
}
