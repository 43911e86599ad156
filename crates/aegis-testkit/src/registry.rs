//! A registry of OCI images on the loopback interface, for pulls that go wrong when a test wants them to.
//!
//! It speaks the distribution protocol as far as pulls need it: manifests by tag and digest, blobs with ranges, basic
//! authentication. What it has, tests put into it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use aegis_types::{Digest, ImageName};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// See the module. Ends when it is dropped.
pub struct TestRegistry {
    address: SocketAddr,
    state: Arc<State>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    content: Mutex<Content>,
    /// Layers stop half-way while this is true.
    held: watch::Sender<bool>,
    /// Layers on their way.
    sending: watch::Sender<usize>,
}

/// A layer on its way, until it is dropped.
struct Sending(Arc<State>);

impl Sending {
    fn begin(state: &Arc<State>) -> Self {
        state.sending.send_modify(|count| *count += 1);
        Self(Arc::clone(state))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.sending.send_modify(|count| *count -= 1);
    }
}

#[derive(Default)]
struct Content {
    blobs: HashMap<String, Bytes>,
    /// Blobs that are layers, which can be held.
    layers: HashSet<String>,
    /// `repository:tag` → digest of a manifest.
    tags: HashMap<String, String>,
    manifests: HashMap<String, Bytes>,
    /// Blobs whose next answer is cut after so many bytes.
    cuts: HashMap<String, usize>,
    login: Option<String>,
    requests: Vec<String>,
}

/// What an image says about its process.
#[derive(Debug, Clone, Default)]
pub struct TestImage {
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Program with its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments.
    pub cmd: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// User.
    pub user: Option<String>,
}

impl TestRegistry {
    /// A registry without images.
    ///
    /// # Panics
    /// There is no port.
    pub async fn start() -> Self {
        Self::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Arc::default()).await
    }

    async fn listen(address: SocketAddr, state: Arc<State>) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let mut tasks = JoinSet::new();
        let serving = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                let service = service_fn(move |request| {
                    let state = Arc::clone(&state);
                    async move { Ok::<_, Infallible>(answer(&state, &request)) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                connections
                    .spawn(async move { drop(http.serve_connection(TokioIo::new(stream), service).await) });
            }
        });
        Self { address, state, tasks }
    }

    /// Ends it, but for its port and its content.
    pub async fn down(mut self) -> StoppedRegistry {
        self.tasks.shutdown().await;
        StoppedRegistry { address: self.address, state: Arc::clone(&self.state) }
    }

    /// A name of an image here.
    ///
    /// # Panics
    /// It is no name.
    pub fn name(&self, path: &str) -> ImageName {
        ImageName::parse(&format!("{}/{path}", self.host())).expect("a valid name")
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.state.content.lock().expect("no code panics while it holds this")
    }

    /// Gives a name such as `team/tools:1` to an image with these layers, which are tar archives; says what its
    /// manifest and its layers are called.
    ///
    /// # Panics
    /// It is no such name.
    pub fn put(&self, path: &str, image: &TestImage, layers: &[Vec<u8>]) -> (Digest, Vec<Digest>) {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let digests: Vec<Digest> = layers.iter().map(|layer| digest_of(layer)).collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Env": image.env, "Entrypoint": image.entrypoint, "Cmd": image.cmd,
                "WorkingDir": image.workdir, "User": image.user,
            },
            "rootfs": { "type": "layers", "diff_ids": digests },
        });
        let config = serde_json::to_vec(&config).expect("JSON serialises");
        let described = digests
            .iter()
            .zip(layers)
            .map(|(digest, layer)| json!({ "mediaType": LAYER, "digest": digest, "size": layer.len() }));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest_of(&config), "size": config.len() },
            "layers": described.collect::<Vec<_>>(),
        });
        let manifest = serde_json::to_vec(&manifest).expect("JSON serialises");
        let digest = digest_of(&manifest);
        let mut content = self.content();
        for blob in layers.iter().chain([&config]) {
            content.blobs.insert(digest_of(blob).into(), Bytes::from(blob.clone()));
        }
        content.layers.extend(digests.iter().map(|digest| digest.as_str().to_owned()));
        content.manifests.insert(digest.clone().into(), manifest.into());
        content.tags.insert(path.to_owned(), digest.clone().into());
        (digest, digests)
    }

    /// From now on only this user may read.
    pub fn require(&self, username: &str, password: &str) {
        self.content().login = Some(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))));
    }

    /// The next answer with this blob breaks off after so many bytes.
    pub fn cut(&self, blob: &Digest, bytes: usize) {
        self.content().cuts.insert(blob.as_str().to_owned(), bytes);
    }

    /// From now on layers stop half-way, until [`TestRegistry::release`].
    pub fn hold(&self) {
        self.state.held.send_replace(true);
    }

    /// Lets layers go on.
    pub fn release(&self) {
        self.state.held.send_replace(false);
    }

    /// Waits until so many layers are on their way: answers that were not given up and are not complete.
    ///
    /// # Panics
    /// Never.
    pub async fn sends(&self, count: usize) {
        let mut sending = self.state.sending.subscribe();
        sending.wait_for(|sending| *sending == count).await.expect("the sender is here");
    }

    /// Every request so far: method, path and, if there is one, range.
    pub fn requests(&self) -> Vec<String> {
        self.content().requests.clone()
    }

    /// Requests for this blob so far.
    pub fn asked_for(&self, blob: &Digest) -> usize {
        self.requests().iter().filter(|request| request.contains(blob.as_str())).count()
    }
}

/// A registry that does not listen.
pub struct StoppedRegistry {
    address: SocketAddr,
    state: Arc<State>,
}

impl StoppedRegistry {
    /// Listens again.
    ///
    /// # Panics
    /// Somebody else has taken its port.
    pub async fn up(self) -> TestRegistry {
        TestRegistry::listen(self.address, self.state).await
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

fn answer(state: &Arc<State>, request: &Request<Incoming>) -> Response<Body> {
    let mut content = state.content.lock().expect("no code panics while it holds this");
    let (path, headers) = (request.uri().path(), request.headers());
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content.requests.push(format!("{} {path} {range}", request.method()).trim_end().to_owned());
    if let Some(login) = &content.login
        && header_text(headers, &header::AUTHORIZATION) != login
    {
        let mut denied = status(StatusCode::UNAUTHORIZED);
        let challenge = header::HeaderValue::from_static("Basic realm=\"test\"");
        denied.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return denied;
    }
    let get = *request.method() == Method::GET;
    if !get && *request.method() != Method::HEAD {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Some(path) = path.strip_prefix("/v2/") else { return status(StatusCode::NOT_FOUND) };
    if path.is_empty() {
        return status(StatusCode::OK);
    }
    if let Some((repository, reference)) = path.split_once("/manifests/") {
        let digest = match reference.starts_with("sha256:") {
            true => Some(reference.to_owned()),
            false => content.tags.get(&format!("{repository}:{reference}")).cloned(),
        };
        let found = digest.and_then(|digest| Some((content.manifests.get(&digest)?.clone(), digest)));
        return match found {
            Some((manifest, digest)) => {
                whole(get, manifest, &[("content-type", MANIFEST), ("docker-content-digest", &digest)])
            }
            None => status(StatusCode::NOT_FOUND),
        };
    }
    let Some((_, digest)) = path.split_once("/blobs/") else { return status(StatusCode::NOT_FOUND) };
    match content.blobs.get(digest).cloned() {
        Some(blob) if !content.layers.contains(digest) => whole(get, blob, &[]),
        Some(blob) => {
            let cut = content.cuts.remove(digest);
            send_blob(state, get, &blob, range, cut)
        }
        None => status(StatusCode::NOT_FOUND),
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn status(status: StatusCode) -> Response<Body> {
    let mut answer = whole(true, Bytes::new(), &[]);
    *answer.status_mut() = status;
    answer
}

fn whole(with_body: bool, bytes: Bytes, headers: &[(&str, &str)]) -> Response<Body> {
    let pieces = if with_body { vec![bytes.clone()] } else { Vec::new() };
    let body = StreamBody::new(stream::iter(pieces.into_iter().map(|piece| Ok(Frame::data(piece)))));
    let builder =
        headers.iter().fold(Response::builder(), |builder, (name, value)| builder.header(*name, *value));
    let builder = builder.header(header::CONTENT_LENGTH, bytes.len());
    builder.body(body.boxed_unsync()).expect("valid headers")
}

fn send_blob(
    state: &Arc<State>,
    with_body: bool,
    blob: &Bytes,
    range: &str,
    cut: Option<usize>,
) -> Response<Body> {
    let start = range.strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse().ok());
    let start = start.filter(|start| *start < blob.len());
    let rest = blob.slice(start.unwrap_or(0)..);
    if !with_body {
        return whole(false, rest, &[("content-type", "application/octet-stream")]);
    }
    let (first, second) = match cut {
        Some(cut) => (rest.slice(..cut.min(rest.len())), Err(io::Error::other("cut"))),
        None => (rest.slice(..rest.len() / 2), Ok(rest.slice(rest.len() / 2..))),
    };
    let mut held = state.held.subscribe();
    let sending = Sending::begin(state);
    let rest_of_it = stream::once(async move {
        let _sending = sending;
        match second {
            Ok(_) => drop(held.wait_for(|held| !held).await),
            // What was sent before is on its way when nothing follows at once.
            Err(_) => tokio::task::yield_now().await,
        }
        second.map(Frame::data)
    });
    let pieces = futures::StreamExt::chain(stream::iter([Ok(Frame::data(first))]), rest_of_it);
    let builder = Response::builder().header(header::CONTENT_LENGTH, rest.len());
    let builder = match start {
        Some(start) => builder
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{}", blob.len() - 1, blob.len())),
        None => builder,
    };
    builder.body(StreamBody::new(pieces).boxed_unsync()).expect("valid headers")
}

/// A tar archive with these files and directories (which end in `/`), owned by root.
///
/// # Panics
/// A name is too long.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let sorted: BTreeMap<_, _> = files.iter().copied().collect();
    for (path, content) in sorted {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(if path.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).expect("a vector takes everything");
    }
    tar.into_inner().expect("a vector takes everything")
}
