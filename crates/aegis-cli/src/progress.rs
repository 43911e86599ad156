//! Spinners and bars on standard error while the user waits. Nothing is shown when standard error is no terminal.

use std::collections::HashMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A spinner; it disappears when dropped.
pub(crate) struct Spinner(ProgressBar);

impl Spinner {
    pub(crate) fn start(message: &str) -> Self {
        // `new_spinner` draws to standard error, and to nothing when that is no terminal.
        let bar = ProgressBar::new_spinner();
        if !bar.is_hidden() {
            bar.set_message(message.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self(bar)
    }

    pub(crate) fn say(&self, message: &str) {
        self.0.set_message(message.to_owned());
    }

    /// Nobody sees it: standard error is no terminal.
    pub(crate) fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }

    /// Writes something while the spinner is out of the way.
    pub(crate) fn aside(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }

    /// Removes the spinner, so that output can be written. Idempotent.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A bar that shows how many bytes were handled, of a total if that is known.
pub(crate) fn byte_bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A spinner, and below it a bar for each layer of an image.
pub(crate) struct LayerBars {
    all: MultiProgress,
    stage: ProgressBar,
    layers: HashMap<String, ProgressBar>,
}

impl LayerBars {
    pub(crate) fn new() -> Self {
        let all = MultiProgress::new();
        let stage = all.add(ProgressBar::new_spinner());
        if !stage.is_hidden() {
            stage.enable_steady_tick(Duration::from_millis(100));
        }
        Self { all, stage, layers: HashMap::new() }
    }

    pub(crate) fn say(&self, message: &str) {
        self.stage.set_message(message.to_owned());
    }

    /// How far the layer with this digest in hexadecimal digits is.
    pub(crate) fn layer(&mut self, hex: &str, done: u64, size: u64) {
        let all = &self.all;
        let bar = self.layers.entry(hex.to_owned()).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(size));
            let short: String = hex.chars().take(12).collect();
            match ProgressStyle::with_template("  {msg} {bar:40} {bytes}/{total_bytes}") {
                Ok(style) => bar.with_style(style).with_message(short),
                Err(_) => bar,
            }
        });
        bar.set_position(done);
    }

    /// The layers are here.
    pub(crate) fn drop_layers(&mut self) {
        for (_, bar) in self.layers.drain() {
            bar.finish_and_clear();
        }
    }

    /// Removes everything, so that output can be written.
    pub(crate) fn clear(&mut self) {
        self.drop_layers();
        self.stage.finish_and_clear();
    }
}

impl Drop for LayerBars {
    fn drop(&mut self) {
        self.clear();
    }
}
