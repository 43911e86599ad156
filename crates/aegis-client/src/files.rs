//! Files on their way to us.

use aegis_api::{REPORT_TRAILER, STAT_HEADER};
use aegis_types::{CopyReport, FileStat};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::task::JoinSet;

use crate::ClientError;
use crate::connection::Answer;

/// A tar stream from a guest, which is hostile.
pub struct Download {
    /// What was found at the path, as the guest says.
    pub stat: FileStat,
    body: Incoming,
    report: CopyReport,
    _driver: JoinSet<()>,
}

impl Download {
    pub(crate) fn new(answer: Answer) -> Result<Self, ClientError> {
        let stat = answer.header(STAT_HEADER).and_then(|text| serde_json::from_str(text).ok());
        let stat = stat.ok_or_else(|| ClientError::Protocol("it does not say what was found".into()))?;
        let (body, driver) = answer.into_stream();
        Ok(Self { stat, body, report: CopyReport::default(), _driver: driver })
    }

    /// The next piece; none at the end of a stream that is complete. Cancel safe.
    ///
    /// # Errors
    /// The connection broke, or the copy did.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            match frame.map_err(ClientError::Lost)?.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let text = trailers.get(REPORT_TRAILER).and_then(|value| value.to_str().ok());
                    let report = text.and_then(decode).and_then(|json| serde_json::from_slice(&json).ok());
                    self.report = report.unwrap_or_default();
                }
            }
        }
        Ok(None)
    }

    /// What the guest says of the copy; known at its end.
    pub fn report(&self) -> &CopyReport {
        &self.report
    }
}

/// An answer that is no JSON, such as an archive.
pub struct Bytestream {
    body: Incoming,
    _driver: JoinSet<()>,
}

impl Bytestream {
    pub(crate) fn new(answer: Answer) -> Self {
        let (body, driver) = answer.into_stream();
        Self { body, _driver: driver }
    }

    /// The next piece; none at the end of a stream that is complete. Cancel safe.
    ///
    /// # Errors
    /// The connection broke, or whoever made the answer could not go on.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(ClientError::Lost)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// Undoes [`aegis_api::paths::encode`].
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        (bytes, rest) = match first {
            b'%' => {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                (bytes, &after[2..])
            }
            byte => {
                bytes.push(*byte);
                (bytes, after)
            }
        };
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_comes_back() {
        let text = "{\"ä\": \"%20\"}";
        assert_eq!(decode(&aegis_api::paths::encode(text)), Some(text.as_bytes().to_vec()));
        assert_eq!(decode("%2"), None);
        assert_eq!(decode("%zz"), None);
    }
}
