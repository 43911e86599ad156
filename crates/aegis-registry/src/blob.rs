//! Downloading a layer.

use std::path::Path;

use aegis_types::ImageName;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use crate::authorization::Query;
use crate::endpoint::{Endpoint, host_of};
use crate::error::{Problem, RegistryError};
use crate::http::interrupted;
use crate::partial::Partial;
use crate::registry::Registry;
use crate::resolve::{RemoteLayer, check_encoding};
use crate::text::printable;

/// What must come within the time of a stall. Whoever sends less could keep a download for ever.
const WINDOW_BYTES: u64 = 64 << 10;
/// After so much, failures before count no more: a bad line ends no download that goes on.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Who is told how many bytes of a layer are there. Less than before means that they were not the right ones.
type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

impl Registry {
    /// Downloads a layer to `complete`, by way of `part` in the same file system. What is in `part` already is kept
    /// and continued, also when this future is dropped or fails; `complete` appears when everything is verified and on the
    /// disk. If it is there already, or another download of the same `part` is under way, it is waited for instead.
    ///
    /// # Errors
    /// [`RegistryError`], which says what was tried and why it failed.
    pub async fn fetch(
        &self,
        name: &ImageName,
        layer: &RemoteLayer,
        part: &Path,
        complete: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        if exists(complete).await? {
            progress(layer.size_bytes);
            return Ok(());
        }
        let mut partial = Partial::open(part, layer.size_bytes).await.map_err(local)?;
        if exists(complete).await? {
            // Another download ended while this one waited for its file.
            partial.remove().await;
            progress(layer.size_bytes);
            return Ok(());
        }
        progress(partial.length());
        let mut mirrors = Vec::new();
        for endpoint in self.endpoints(name)? {
            let problem = match self.download(&endpoint, name, layer, &mut partial, progress).await {
                Ok(()) => return partial.complete(complete).await.map_err(local),
                Err(problem) => problem,
            };
            if endpoint.is_mirror && !problem.is_local() {
                tracing::warn!(mirror = endpoint.name, layer = %layer.digest, %problem, "mirror left out");
                mirrors.push((endpoint.name, problem));
                continue;
            }
            if partial.length() == 0 {
                partial.remove().await;
            }
            if matches!(problem, Problem::File { .. }) {
                return Err(local(problem));
            }
            let (what, registry) = (format!("layer {} of `{name}`", layer.digest), endpoint.name);
            return Err(RegistryError::Request { what, registry, problem: Box::new(problem), mirrors });
        }
        unreachable!("the last endpoint is no mirror")
    }

    /// Completes the file from one endpoint and verifies it.
    async fn download(
        &self,
        endpoint: &Endpoint,
        name: &ImageName,
        layer: &RemoteLayer,
        partial: &mut Partial,
        progress: Progress<'_>,
    ) -> Result<(), Problem> {
        let repository = name.repository();
        let path = format!("blobs/{}", layer.digest);
        let mut backoff = self.backoff(endpoint);
        let mut reached = partial.length();
        let mut may_restart = true;
        loop {
            let pieced = partial.length() > 0;
            let query = Query { repository: &repository, path: &path, accept: None, skip: partial.length() };
            let problem = match self.transfer(endpoint, query, layer, partial, progress).await {
                Ok(()) if partial.digest() == layer.digest => return Ok(()),
                Ok(()) => {
                    let actual = partial.digest();
                    partial.discard().await?;
                    progress(0);
                    // A piece from before, or its seam, may be to blame; a download in one piece shows.
                    if pieced && std::mem::take(&mut may_restart) {
                        reached = 0;
                        continue;
                    }
                    Problem::WrongDigest { expected: layer.digest.clone(), actual }
                }
                Err(problem) => problem,
            };
            if partial.length() >= reached + PROGRESS_BYTES {
                reached = partial.length();
                backoff.reset();
            }
            backoff.wait(problem).await?;
        }
    }

    /// One request: brings what is missing, as far as it comes.
    async fn transfer(
        &self,
        endpoint: &Endpoint,
        query: Query<'_>,
        layer: &RemoteLayer,
        partial: &mut Partial,
        progress: Progress<'_>,
    ) -> Result<(), Problem> {
        let size = layer.size_bytes;
        if query.skip == size {
            return Ok(());
        }
        let mut response = self.get(endpoint, query).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            response = self.get(endpoint, Query { skip: 0, ..query }).await?;
        }
        check_encoding(response.headers())?;
        let begins_at = begin(&response, size)?;
        if begins_at != partial.length() {
            if begins_at != 0 {
                return Err(Problem::Malformed(format!("it begins at byte {begins_at}")));
            }
            // The server sends everything whatever it is asked for.
            partial.discard().await?;
            progress(0);
        }
        if let Some(announced) = response.content_length()
            && begins_at.saturating_add(announced) != size
        {
            return Err(Problem::WrongSize { expected: size, actual: begins_at.saturating_add(announced) });
        }
        let read = self.read(&mut response, size, partial, progress).await;
        // What came before a failure is the beginning of the next attempt.
        partial.flush().await?;
        read?;
        if partial.length() < size {
            return Err(Problem::Truncated { expected: size, actual: partial.length() });
        }
        Ok(())
    }

    async fn read(
        &self,
        response: &mut Response,
        size: u64,
        partial: &mut Partial,
        progress: Progress<'_>,
    ) -> Result<(), Problem> {
        let url = response.url().clone();
        let stall = self.options().timeouts.stall;
        let mut deadline = Instant::now() + stall;
        let mut in_window = 0;
        loop {
            let chunk = timeout_at(deadline, response.chunk()).await;
            let chunk = chunk.map_err(|_| Problem::Timeout { host: host_of(&url), within: stall })?;
            let Some(chunk) = chunk.map_err(|e| interrupted(&url, e))? else { return Ok(()) };
            if partial.length() + chunk.len() as u64 > size {
                // Nothing of an answer that is too long is right.
                partial.discard().await?;
                progress(0);
                return Err(Problem::TooLarge { max: size });
            }
            partial.write(&chunk).await?;
            progress(partial.length());
            in_window += chunk.len() as u64;
            if in_window >= WINDOW_BYTES {
                in_window = 0;
                deadline = Instant::now() + stall;
            }
        }
    }
}

/// The byte of the layer with which an answer begins.
fn begin(response: &Response, size: u64) -> Result<u64, Problem> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(0);
    }
    let text =
        response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    range(text, size)
        .ok_or_else(|| Problem::Malformed(format!("`{}` is not the missing range", printable(text))))
}

/// The beginning of `bytes BEGIN-END/SIZE` (RFC 9110, 14.4), if it goes to the end of a layer of this size.
fn range(text: &str, size: u64) -> Option<u64> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (begin, end) = range.split_once('-')?;
    let (begin, end): (u64, u64) = (begin.parse().ok()?, end.parse().ok()?);
    let fits = total == "*" || total.parse() == Ok(size);
    (fits && begin <= end && end.checked_add(1) == Some(size)).then_some(begin)
}

async fn exists(path: &Path) -> Result<bool, RegistryError> {
    let found = tokio::fs::try_exists(path).await;
    found.map_err(|source| RegistryError::File { action: "look for", path: path.to_owned(), source })
}

fn local(problem: Problem) -> RegistryError {
    match problem {
        Problem::File { action, path, source } => RegistryError::File { action, path, source },
        other => unreachable!("a file has no other problems: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_goes_to_the_end() {
        assert_eq!(range("bytes 5-9/10", 10), Some(5));
        assert_eq!(range("bytes 5-9/*", 10), Some(5));
        for bad in [
            "",
            "bytes 5-8/10",
            "bytes 5-9/11",
            "bytes 9-5/10",
            "bytes */10",
            "5-9/10",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(range(bad, 10), None, "{bad}");
        }
    }
}
