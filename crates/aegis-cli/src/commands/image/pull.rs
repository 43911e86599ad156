//! `aegis image pull`.

use aegis_api::{ImageSummary, PullEvent, PullImage};
use aegis_types::{ImageName, PullPolicy};

use super::super::Context;
use super::short;
use crate::error::CliError;
use crate::progress::LayerBars;
use crate::signals::Signals;
use crate::ui;

pub(super) async fn run(
    context: &Context,
    name: ImageName,
    policy: PullPolicy,
    json: bool,
) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let request = PullImage { name, policy: Some(policy) };
    let follow = follow(context, &request, json);
    // The daemon sees that nobody reads any more and gives up, unless somebody else wants the image as well.
    tokio::select! {
        done = follow => done,
        signal = signals.next() => Err(signal),
    }
}

async fn follow(context: &Context, request: &PullImage, json: bool) -> Result<(), CliError> {
    let mut events = context.client.pull(request).await?;
    let mut bars = LayerBars::new();
    loop {
        let event = events.next().await?;
        if json {
            ui::print_bytes(ui::json_line(&event)?.as_bytes())?;
        } else {
            show(&mut bars, request.name.as_str(), &event);
        }
        match event {
            PullEvent::Ready { image, changed } => {
                bars.clear();
                return if json { Ok(()) } else { ui::print(&result(&image, changed)) };
            }
            PullEvent::Failed { error } => {
                bars.clear();
                return Err(CliError::from(error));
            }
            _ => {}
        }
    }
}

fn show(bars: &mut LayerBars, name: &str, event: &PullEvent) {
    match event {
        PullEvent::Resolving => bars.say(&format!("asking for {name}")),
        PullEvent::Downloading { layers, .. } => {
            bars.say("downloading");
            for layer in layers {
                bars.layer(layer.digest.hex(), layer.done_bytes, layer.size_bytes);
            }
        }
        PullEvent::Building { .. } => {
            bars.drop_layers();
            bars.say("unpacking");
        }
        PullEvent::Ready { .. } | PullEvent::Failed { .. } => {}
    }
}

fn result(image: &ImageSummary, changed: bool) -> String {
    let what = if changed { "pulled" } else { "is up to date" };
    format!("Image {what}: {} ({}, {})\n", image.name, ui::size(image.size_bytes), short(&image.digest))
}
