//! `aegis image`.

mod archive;
mod pull;

use aegis_api::{ImageSummary, ImageUsage, ImageUsageEntry, PruneImages};
use aegis_types::ImageName;

use super::Context;
use crate::args::ImageCommand;
use crate::error::CliError;
use crate::ui;

pub(crate) async fn run(context: &Context, command: ImageCommand) -> Result<u8, CliError> {
    match command {
        ImageCommand::List(format) => list(context, format.json).await?,
        ImageCommand::Pull { name, pull, json } => pull::run(context, name, pull, json).await?,
        ImageCommand::Inspect { name } => ui::print_json(&context.client.image(&name).await?)?,
        ImageCommand::Delete { names, force } => return delete(context, &names, force).await,
        ImageCommand::Prune { all, older_than } => prune(context, &PruneImages { all, older_than }).await?,
        ImageCommand::Import { tar, name } => archive::import(context, &tar, &name).await?,
        ImageCommand::Load { archive, name } => archive::load(context, &archive, name.as_ref()).await?,
        ImageCommand::Save { name, output } => archive::save(context, &name, output.as_deref()).await?,
        ImageCommand::Df(format) => usage(context, format.json).await?,
    }
    Ok(0)
}

async fn list(context: &Context, json: bool) -> Result<(), CliError> {
    let images = context.client.images().await?;
    if json {
        return ui::print_json(&images);
    }
    if images.is_empty() {
        return ui::print("No images\n");
    }
    let rows: Vec<_> = images.iter().map(row).collect();
    ui::print(&ui::table(["NAME", "SIZE", "CREATED", "DIGEST"], &rows))
}

fn row(image: &ImageSummary) -> [String; 4] {
    let created = match image.created_at {
        Some(time) => ui::time(time),
        None if image.builtin => "built in".to_owned(),
        None => "-".to_owned(),
    };
    [image.name.to_string(), ui::size(image.size_bytes), created, short(&image.digest)]
}

/// Enough of a digest to tell images apart.
fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

async fn delete(context: &Context, names: &[ImageName], force: bool) -> Result<u8, CliError> {
    let mut code = 0;
    for name in names {
        match context.client.delete_image(name, force).await {
            Ok(_) => ui::print(&format!("Image {name} deleted\n"))?,
            Err(error) => {
                let error = CliError::from(error);
                ui::report(&error);
                code = error.kind().exit_code();
            }
        }
    }
    Ok(code)
}

async fn prune(context: &Context, request: &PruneImages) -> Result<(), CliError> {
    let reply = context.client.prune_images(request).await?;
    let names: String = reply.names.iter().map(|name| format!("Image {name} deleted\n")).collect();
    let freed = ui::size(reply.freed_bytes);
    ui::print(&format!("{names}Pruned {} image(s), {freed} are free again\n", reply.images))
}

async fn usage(context: &Context, json: bool) -> Result<(), CliError> {
    let usage = context.client.image_usage().await?;
    if json {
        return ui::print_json(&usage);
    }
    if !usage.images.is_empty() {
        let rows: Vec<_> = usage.images.iter().map(usage_row).collect();
        let header = ["NAME", "IMAGE", "LAYERS", "SHARED", "UNIQUE", "USED"];
        ui::print(&format!("{}\n", ui::table(header, &rows)))?;
    }
    ui::print(&totals(&usage))
}

fn usage_row(image: &ImageUsageEntry) -> [String; 6] {
    [
        image.name.to_string(),
        ui::size(image.image_bytes),
        ui::size(image.layers_bytes),
        ui::size(image.shared_bytes),
        ui::size(image.unique_bytes),
        if image.used { "yes" } else { "no" }.to_owned(),
    ]
}

fn totals(usage: &ImageUsage) -> String {
    ui::fields(&[
        ("Images", ui::size(usage.images_bytes)),
        ("Unnamed", ui::size(usage.unnamed_bytes)),
        ("Layers", ui::size(usage.layers_bytes)),
        ("Interrupted", ui::size(usage.partial_bytes)),
        ("Reclaimable", ui::size(usage.reclaimable_bytes)),
    ])
}
