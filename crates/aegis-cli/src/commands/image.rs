//! `aegis image`.

use std::path::Path;

use aegis_api::{ImageImported, ImageSummary};
use aegis_types::ImageName;
use tokio::io::AsyncRead;

use super::Context;
use crate::args::ImageCommand;
use crate::error::CliError;
use crate::progress::byte_bar;
use crate::ui;

pub(crate) async fn run(context: &Context, command: ImageCommand) -> Result<(), CliError> {
    match command {
        ImageCommand::List(format) => list(context, format.json).await,
        ImageCommand::Import { tar, name } => import(context, &tar, &name).await,
    }
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

async fn import(context: &Context, path: &Path, name: &ImageName) -> Result<(), CliError> {
    let image = if path == Path::new("-") {
        send(context, name, tokio::io::stdin(), None).await?
    } else {
        let cannot_read = |e| CliError::failure(format!("cannot read {}", path.display())).because(&e);
        let file = tokio::fs::File::open(path).await.map_err(cannot_read)?;
        let meta = file.metadata().await.map_err(cannot_read)?;
        if meta.is_dir() {
            return Err(CliError::failure(format!("{} is a directory", path.display()))
                .hint(format!("pack it first: `tar -C {} -cf image.tar .`", path.display())));
        }
        send(context, name, file, Some(meta.len())).await?
    };
    let size = ui::size(image.size_bytes);
    ui::print(&format!("Image imported: {} ({size}, {})\n", image.name, short(&image.digest)))
}

async fn send<R>(
    context: &Context,
    name: &ImageName,
    tar: R,
    total: Option<u64>,
) -> Result<ImageImported, CliError>
where
    R: AsyncRead + Send + Unpin + 'static,
{
    let bar = byte_bar(total);
    let imported = context.client.import(name, bar.wrap_async_read(tar)).await;
    bar.finish_and_clear();
    Ok(imported?)
}
