//! Images: list and import.

use std::io::{self, ErrorKind, Read};

use aegis_api::{ImageImported, ImageSummary};
use aegis_image::ImageError;
use aegis_types::ImageName;
use axum::body::Body;
use axum::extract::State;
use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task;
use utoipa::IntoParams;

use super::Shared;
use super::error::ApiError;
use super::extract::Params;
use crate::text;

/// Pieces of an archive on their way to the thread that reads it.
const QUEUE: usize = 8;

/// Images.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = Vec<ImageSummary>)))]
pub(super) async fn list(State(app): State<Shared>) -> Result<axum::Json<Vec<ImageSummary>>, ApiError> {
    let images = app.images.clone();
    let list = task::spawn_blocking(move || images.list()).await.expect("listing images does not panic");
    list.map(axum::Json).map_err(|e| ApiError::internal("cannot list the images", &e))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ImportParams {
    /// Of the image.
    #[param(required)]
    name: Option<String>,
}

/// Makes an image of a tar archive, which may be compressed.
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
) -> Result<axum::Json<ImageImported>, ApiError> {
    let name = params.name.ok_or_else(|| ApiError::invalid("`name` is required"))?;
    let name = ImageName::parse(&name).map_err(|e| ApiError::invalid(e.to_string()))?;
    let (pieces, queue) = mpsc::channel(QUEUE);
    let images = app.images.clone();
    let importing = task::spawn_blocking(move || images.import(&name, PieceReader::new(queue)));
    let mut stream = body.into_data_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map(Piece::Data).unwrap_or_else(|e| Piece::Broken(e.to_string()));
        if pieces.send(piece).await.is_err() {
            // The import has failed already. The rest is read and dropped: clients look for an answer only after
            // they could send everything.
            while let Some(Ok(_)) = stream.next().await {}
        }
    }
    // Whoever imports may have seen the end of the archive before.
    let _ = pieces.send(Piece::End).await;
    let image = importing.await.expect("importing an image does not panic").map_err(refused)?;
    Ok(axum::Json(ImageImported { name: image.name, digest: image.digest, size_bytes: image.size_bytes }))
}

fn refused(error: ImageError) -> ApiError {
    match &error {
        ImageError::File { .. } | ImageError::DamagedRecord { .. } | ImageError::MissingImage { .. } => {
            ApiError::internal("cannot store the image", &error)
        }
        _ => {
            let refusal = ApiError::invalid(format!("cannot import the image: {error}"));
            match text::cause(&error) {
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
