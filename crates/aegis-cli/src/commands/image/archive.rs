//! Images from files and into files.

use std::fs::Permissions;
use std::io::IsTerminal as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aegis_api::ImageImported;
use aegis_client::Bytestream;
use aegis_types::ImageName;
use indicatif::ProgressBar;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::super::Context;
use super::short;
use crate::error::{CliError, Kind};
use crate::progress::byte_bar;
use crate::signals::Signals;
use crate::ui;

/// Something to send, and how long it is if that is known.
type Source = (Box<dyn AsyncRead + Send + Unpin>, Option<u64>);

pub(super) async fn import(context: &Context, path: &Path, name: &ImageName) -> Result<(), CliError> {
    let (tar, total) = open(path).await?;
    let bar = byte_bar(total);
    let imported = context.client.import(name, bar.wrap_async_read(tar)).await;
    bar.finish_and_clear();
    ui::print(&line("imported", &imported?))
}

pub(super) async fn load(context: &Context, path: &Path, name: Option<&ImageName>) -> Result<(), CliError> {
    let (archive, total) = open(path).await?;
    let bar = byte_bar(total);
    let loaded = context.client.load(name, bar.wrap_async_read(archive)).await;
    bar.finish_and_clear();
    let lines: String = loaded?.iter().map(|image| line("loaded", image)).collect();
    ui::print(&lines)
}

fn line(what: &str, image: &ImageImported) -> String {
    let size = ui::size(image.size_bytes);
    format!("Image {what}: {} ({size}, {})\n", image.name, short(&image.digest))
}

async fn open(path: &Path) -> Result<Source, CliError> {
    if path == Path::new("-") {
        return Ok((Box::new(tokio::io::stdin()), None));
    }
    let cannot_read = |e| CliError::failure(format!("cannot read {}", path.display())).because(&e);
    let file = File::open(path).await.map_err(cannot_read)?;
    let meta = file.metadata().await.map_err(cannot_read)?;
    if meta.is_dir() {
        return Err(CliError::failure(format!("{} is a directory", path.display()))
            .hint(format!("pack it first: `tar -C {} -cf image.tar .`", path.display())));
    }
    Ok((Box::new(file), Some(meta.len())))
}

pub(super) async fn save(context: &Context, name: &ImageName, output: Option<&Path>) -> Result<(), CliError> {
    match output.filter(|path| *path != Path::new("-")) {
        Some(path) => save_file(context, name, path).await,
        None if std::io::stdout().is_terminal() => {
            let error = CliError::new(Kind::Usage, "an archive does not belong on a terminal");
            Err(error.hint("name a file with `--output`, or send it through a pipe"))
        }
        None => {
            let mut out = tokio::io::stdout();
            let stream = context.client.save(name).await?;
            write(stream, &mut out, &byte_bar(None)).await?.map_err(|e| ui::output_error(&e))
        }
    }
}

/// A file appears complete or not at all.
async fn save_file(context: &Context, name: &ImageName, path: &Path) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let cannot_write = |e| CliError::failure(format!("cannot write {}", path.display())).because(&e);
    let stream = context.client.save(name).await?;
    let unfinished = Unfinished(unfinished_name(path));
    let mut file = File::create(&unfinished.0).await.map_err(cannot_write)?;
    let bar = byte_bar(None);
    let saved = async {
        write(stream, &mut file, &bar).await?.map_err(cannot_write)?;
        file.sync_all().await.map_err(cannot_write)?;
        file.set_permissions(Permissions::from_mode(0o600)).await.map_err(cannot_write)?;
        tokio::fs::rename(&unfinished.0, path).await.map_err(cannot_write)
    };
    tokio::select! {
        saved = saved => saved?,
        signal = signals.next() => return Err(signal),
    }
    ui::print(&format!("Image saved: {name} ({})\n", ui::size(bar.position())))
}

/// Beside the file, so that it can be renamed.
fn unfinished_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

/// Removed when it was not renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The outer error is the daemon's, the inner one the file's.
async fn write(
    mut stream: Bytestream,
    out: &mut (impl AsyncWrite + Unpin),
    bar: &ProgressBar,
) -> Result<std::io::Result<()>, CliError> {
    let written = loop {
        let Some(piece) = stream.next().await? else { break out.flush().await };
        if let Err(error) = out.write_all(&piece).await {
            break Err(error);
        }
        bar.inc(piece.len() as u64);
    };
    bar.finish_and_clear();
    Ok(written)
}
