//! Images as streams: tar files in, archives in and out.

use std::io::{self, ErrorKind, Read, Write};

use aegis_api::ImageImported;
use aegis_image::{ImageError, ImageInfo};
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task;
use utoipa::IntoParams;

use super::Shared;
use super::error::ApiError;
use super::extract::Params;
use super::images::{image_name, look};
use super::instances::Answer;
use crate::text;

/// Pieces of an archive on their way to the thread that reads it.
const QUEUE: usize = 8;
/// Pieces of an archive on their way to a client, in bytes.
const PIECE: usize = 256 << 10;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ImportParams {
    /// Of the image.
    #[param(required)]
    name: Option<String>,
}

/// Makes an image of a tar archive with a root file system, which may be compressed.
#[utoipa::path(
    post,
    path = "/v1/images/import",
    params(ImportParams), request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, body = ImageImported))
)]
pub(super) async fn import(
    State(app): State<Shared>,
    Params(params): Params<ImportParams>,
    body: Body,
) -> Answer<ImageImported> {
    let name = image_name(params.name)?;
    let images = app.images.clone();
    let read = move |tar| images.store().import(&name, tar).map(|image| vec![image]);
    let mut imported = receive(body, read).await.map_err(|e| refused("import the image", &e))?;
    app.garbage.notify_one();
    Ok(axum::Json(answer(imported.remove(0))))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LoadParams {
    /// Of the image, if the archive has a single one; as the archive says when absent.
    name: Option<String>,
}

/// Makes images of an OCI archive or one of `docker save`, which may be compressed.
#[utoipa::path(
    post,
    path = "/v1/images/load",
    params(LoadParams), request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, body = Vec<ImageImported>))
)]
pub(super) async fn load(
    State(app): State<Shared>,
    Params(params): Params<LoadParams>,
    body: Body,
) -> Answer<Vec<ImageImported>> {
    let name = params.name.map(|name| image_name(Some(name))).transpose()?;
    let images = app.images.clone();
    let read = move |archive| images.store().load(archive, name.as_ref());
    let loaded = receive(body, read).await.map_err(|e| refused("load the archive", &e))?;
    app.garbage.notify_one();
    Ok(axum::Json(loaded.into_iter().map(answer).collect()))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SaveParams {
    /// Of the image.
    #[param(required)]
    name: Option<String>,
}

/// An image as an OCI archive. The connection breaks when it cannot be completed.
#[utoipa::path(
    get,
    path = "/v1/images/save",
    params(SaveParams),
    responses((status = 200, body = Vec<u8>, content_type = "application/x-tar"))
)]
pub(super) async fn save(
    State(app): State<Shared>,
    Params(params): Params<SaveParams>,
) -> Result<Response, ApiError> {
    let name = image_name(params.name)?;
    let known = look(&app, &name).await?;
    if known.summary.builtin {
        return Err(ApiError::invalid(format!(
            "image `{name}` came with the installation and is no archive"
        ))
        .with_hint("what made it can make it again: `cargo xtask base-image`"));
    }
    let (pieces, mut queue) = mpsc::channel(QUEUE);
    let images = app.images.clone();
    task::spawn_blocking(move || {
        let mut out = PieceWriter { pieces, buffer: BytesMut::new() };
        let saved = images.store().save(&name, &mut out);
        // A client that went away needs no reason.
        let _ = match saved {
            Ok(()) => out.flush(),
            Err(error) => out.fail(error),
        };
    });
    // What fails at once is told properly.
    let first = match queue.recv().await {
        Some(Err(error)) => return Err(refused("save the image", &error)),
        first => first,
    };
    let rest = stream::unfold(queue, |mut queue| async { queue.recv().await.map(|piece| (piece, queue)) });
    let body = Body::from_stream(stream::iter(first).chain(rest));
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

/// Has the body of a request read by a thread.
async fn receive(
    body: Body,
    read: impl FnOnce(PieceReader) -> Result<Vec<ImageInfo>, ImageError> + Send + 'static,
) -> Result<Vec<ImageInfo>, ImageError> {
    let (pieces, queue) = mpsc::channel(QUEUE);
    let reading = task::spawn_blocking(move || read(PieceReader::new(queue)));
    let mut stream = body.into_data_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map(Piece::Data).unwrap_or_else(|e| Piece::Broken(e.to_string()));
        if pieces.send(piece).await.is_err() {
            // It has failed already. The rest is read and dropped: clients look for an answer only after they could
            // send everything.
            while let Some(Ok(_)) = stream.next().await {}
        }
    }
    // Whoever reads may have seen the end of the archive before.
    let _ = pieces.send(Piece::End).await;
    reading.await.expect("reading an archive does not panic")
}

fn answer(image: ImageInfo) -> ImageImported {
    ImageImported { name: image.name, digest: image.digest, size_bytes: image.size_bytes }
}

fn refused(action: &str, error: &ImageError) -> ApiError {
    match error {
        ImageError::File { .. } | ImageError::DamagedRecord { .. } | ImageError::MissingImage { .. } => {
            ApiError::internal(format!("cannot {action}"), error)
        }
        _ => {
            let refusal = ApiError::invalid(format!("cannot {action}: {error}"));
            match text::cause(error) {
                Some(cause) => refusal.with_cause(cause),
                None => refusal,
            }
        }
    }
}

enum Piece {
    Data(Bytes),
    Broken(String),
    /// The body is complete. Without it the client went away, which must not look like the end of an archive.
    End,
}

/// Gives the pieces of a body to a thread that reads.
struct PieceReader {
    queue: mpsc::Receiver<Piece>,
    data: Bytes,
    complete: bool,
}

impl PieceReader {
    fn new(queue: mpsc::Receiver<Piece>) -> Self {
        Self { queue, data: Bytes::new(), complete: false }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.data.is_empty() && !self.complete {
            match self.queue.blocking_recv() {
                Some(Piece::Data(data)) => self.data = data,
                Some(Piece::End) => self.complete = true,
                Some(Piece::Broken(why)) => return Err(io::Error::other(why)),
                None => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the client went away")),
            }
        }
        let count = buffer.len().min(self.data.len());
        self.data.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Gives what a thread writes to a body, in pieces.
struct PieceWriter {
    pieces: mpsc::Sender<Result<Bytes, ImageError>>,
    buffer: BytesMut,
}

impl PieceWriter {
    fn send(&self, piece: Result<Bytes, ImageError>) -> io::Result<()> {
        let gone = |_| io::Error::new(ErrorKind::BrokenPipe, "the client went away");
        self.pieces.blocking_send(piece).map_err(gone)
    }

    /// The body ends without an end.
    fn fail(&mut self, error: ImageError) -> io::Result<()> {
        self.send(Err(error))
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.buffer.is_empty() {
            true => Ok(()),
            false => {
                let piece = self.buffer.split().freeze();
                self.send(Ok(piece))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(pieces: Vec<Piece>) -> io::Result<Vec<u8>> {
        let (queue, receiver) = mpsc::channel(QUEUE);
        for piece in pieces {
            queue.try_send(piece).ok().unwrap();
        }
        drop(queue);
        let mut bytes = Vec::new();
        PieceReader::new(receiver).read_to_end(&mut bytes).map(|_| bytes)
    }

    #[test]
    fn only_a_complete_body_has_an_end() {
        let data = |bytes: &'static [u8]| Piece::Data(Bytes::from_static(bytes));
        assert_eq!(read(vec![data(b"ab"), data(b""), data(b"c"), Piece::End]).unwrap(), b"abc");
        assert!(read(vec![data(b"ab")]).is_err());
        assert!(read(vec![data(b"ab"), Piece::Broken("no".into()), Piece::End]).is_err());
    }
}
