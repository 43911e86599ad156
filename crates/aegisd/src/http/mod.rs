//! The API of `aegis-api`: requests in, calls of the lifecycle, answers out.
//!
//! **Invariants:** every answer that is not a success has an `ErrorBody`. What a client asked for does not depend on
//! the client staying connected; only its answer does.

mod archives;
mod checks;
mod copy;
mod create;
mod error;
mod exec;
mod extract;
mod files;
mod idle;
pub(crate) mod images;
mod instances;
mod logs;
mod metrics;
mod net;
mod openapi;
mod ports;
mod pulls;
mod registries;
mod secrets;
mod stats;
mod status;
mod streams;
mod templates;
mod update;
mod view;
mod wait;
mod workspaces;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aegis_api::{ErrorCode, NDJSON, RouterStatus, ShutdownMode, paths};
use aegis_config::{Home, Settings};
use aegis_lifecycle::Manager;
use aegis_registry::{CredentialStore, Registry};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Extension, Router};
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::accel::Accel;
use crate::assets::Assets;
use crate::exposes::Exposes;
use crate::images::{Images, Provider, Pulls};
use crate::logs::LogStore;
use crate::networks::Networks;
use crate::secrets::Secrets;
use crate::templates::Templates;
use crate::workspaces::Workspaces;
use error::ApiError;

/// Longest body of a JSON request, in bytes.
const BODY_MAX: usize = 1 << 20;

/// What handlers work with.
pub(crate) struct App {
    pub(crate) manager: Manager,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) images: Arc<Images>,
    pub(crate) pulls: Arc<Pulls>,
    pub(crate) provider: Arc<Provider>,
    pub(crate) registry: Registry,
    pub(crate) credentials: CredentialStore,
    pub(crate) assets: Arc<Assets>,
    pub(crate) accel: Arc<Accel>,
    pub(crate) home: Home,
    pub(crate) settings: Settings,
    pub(crate) exposes: Arc<Exposes>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) workspaces: Arc<Workspaces>,
    pub(crate) router: RouterStatus,
    /// Absent with a launcher that has none.
    pub(crate) templates: Option<Arc<Templates>>,
    /// A client asked for the end of the daemon.
    pub(crate) ending: watch::Sender<Option<ShutdownMode>>,
    /// What goes on without its client: execs.
    pub(crate) tasks: TaskTracker,
    /// There may be images that nobody needs any more.
    pub(crate) garbage: Notify,
    /// The daemon ends.
    pub(crate) closing: CancellationToken,
    pub(crate) ids: Ids,
}

type Shared = Arc<App>;

/// Unique numbers that are about the time in nanoseconds since the Unix epoch.
#[derive(Debug, Default)]
pub(crate) struct Ids(AtomicU64);

impl Ids {
    fn next(&self) -> u64 {
        let now = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default();
        let next = |last: u64| Some(now.max(last + 1));
        let last =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).expect("`next` always answers");
        now.max(last + 1)
    }
}

/// A router, and the paths that it knows: an axum router does not tell them.
#[derive(Default)]
struct Routes {
    router: Router<Shared>,
    paths: BTreeSet<String>,
}

impl Routes {
    fn route(mut self, path: &str, methods: MethodRouter<Shared>) -> Self {
        self.paths.insert(path.to_owned());
        Self { router: self.router.route(path, methods), ..self }
    }
}

/// Everything that can be asked for.
pub(crate) fn router(app: Shared) -> Router {
    routes()
        .router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(in_span))
        .layer(Extension(RequestIds::default()))
        .with_state(app)
}

/// All routes. Each is described by the annotation of its handler, which `openapi.rs` lists.
fn routes() -> Routes {
    let instance = format!("{}/{{target}}", paths::INSTANCES);
    let of = |action: &str| format!("{instance}/{action}");
    Routes::default()
        .route(paths::STATUS, get(status::status))
        .route(paths::INSTANCES, get(instances::list).post(create::create))
        // A static path wins over an instance of the same name: let that one keep its routes.
        .route(
            paths::PRUNE,
            post(instances::prune).get(instances::info).delete(instances::delete).patch(update::update),
        )
        .route(&instance, get(instances::info).delete(instances::delete).patch(update::update))
        .route(&of("start"), post(instances::start))
        .route(&of("stop"), post(instances::stop))
        .route(&of("restart"), post(instances::restart))
        .route(&of("disable"), post(instances::disable))
        .route(&of("pause"), post(instances::pause))
        .route(&of("resume"), post(instances::resume))
        .route(&of("hibernate"), post(idle::hibernate))
        .route(&of("keepalive"), post(idle::keep_awake).delete(idle::release))
        .route(&of("wait"), get(wait::wait))
        .route(&of("expose"), post(ports::expose))
        .route(&of("expose/{guest_port}"), delete(ports::unexpose))
        .route(&of("exec"), post(exec::exec))
        .route(&of("exec/attach"), post(streams::exec_attached))
        .route(&of("attach"), post(streams::attach))
        .route(&of("logs"), get(logs::logs))
        .route(&of("net"), get(net::show))
        .route(&of("net/rules"), post(net::add_rule))
        .route(&of("net/log"), get(net::log))
        .route(&of("secrets"), put(secrets::assign))
        .route(&of("workspace/tree"), get(files::tree))
        .route(
            &of("workspace"),
            get(files::read).post(files::write).layer(DefaultBodyLimit::max(files::FILE_MAX)),
        )
        .route(&of("files"), get(copy::read).put(copy::write).layer(DefaultBodyLimit::disable()))
        .route(&of("files/stat"), get(copy::stat))
        .route(&of("console"), get(logs::console))
        .route(paths::STATS, get(stats::stats))
        .route(paths::METRICS, get(metrics::metrics))
        .route(paths::TEMPLATES, get(templates::list).post(templates::build))
        .route(paths::TEMPLATES_PRUNE, post(templates::prune))
        .route(paths::WORKSPACES, get(workspaces::list))
        .route(&format!("{}/{{name}}", paths::WORKSPACES), delete(workspaces::delete))
        .route(&format!("{}/{{name}}/usage", paths::WORKSPACES), get(workspaces::usage))
        .route(paths::SECRETS, get(secrets::list))
        // A secret may have the name of a static path.
        .route(paths::SECRETS_ROTATE_KEY, post(secrets::rotate_key).put(secrets::set).delete(secrets::delete))
        .route(&format!("{}/{{name}}", paths::SECRETS), put(secrets::set).delete(secrets::delete))
        .route(&format!("{}/{{name}}/reveal", paths::SECRETS), post(secrets::reveal))
        .route(paths::AUDIT, get(secrets::audit))
        .route(paths::SHUTDOWN, post(status::shutdown))
        .route(paths::IMAGES, get(images::list).delete(images::delete))
        .route(paths::IMAGE_INSPECT, get(images::inspect))
        .route(paths::IMAGE_PULL, post(pulls::pull))
        .route(paths::IMAGES_PRUNE, post(images::prune))
        .route(paths::IMAGES_USAGE, get(images::usage))
        .route(paths::IMAGE_IMPORT, post(archives::import).layer(DefaultBodyLimit::disable()))
        .route(paths::IMAGE_LOAD, post(archives::load).layer(DefaultBodyLimit::disable()))
        .route(paths::IMAGE_SAVE, get(archives::save))
        .route(paths::REGISTRIES, get(registries::list).post(registries::login))
        .route(&format!("{}/{{registry}}", paths::REGISTRIES), delete(registries::logout))
        .route(paths::OPENAPI, get(openapi::document))
}

#[derive(Debug, Clone, Default)]
struct RequestIds(Arc<AtomicU64>);

/// One span per request, so that everything that is logged on the way to its answer can be found together.
async fn in_span(Extension(ids): Extension<RequestIds>, request: Request, next: Next) -> Response {
    let id = ids.0.fetch_add(1, Ordering::Relaxed);
    let span = tracing::info_span!("request", id, method = %request.method(), path = %request.uri().path());
    next.run(request).instrument(span).await
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    let text = format!("there is no `{method} {}` in this version of aegisd", uri.path());
    ApiError::new(ErrorCode::InvalidRequest, text).with_status(StatusCode::NOT_FOUND)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("`{}` does not take {method}", uri.path());
    ApiError::new(ErrorCode::InvalidRequest, text).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

/// A streamed answer. Each item is flushed by itself.
fn ndjson(lines: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let body = Body::from_stream(futures::StreamExt::map(lines, Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, NDJSON), (header::CACHE_CONTROL, "no-cache")], body).into_response()
}

/// Appends an object as a line.
fn write_line<T: serde::Serialize>(out: &mut Vec<u8>, object: &T) {
    serde_json::to_writer(&mut *out, object).expect("API types serialise");
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_follow_the_clock() {
        let ids = Ids::default();
        let first = ids.next();
        let mut last = first;
        for _ in 0..10_000 {
            let next = ids.next();
            assert!(next > last);
            last = next;
        }
        assert!(first > 1_600_000_000_000_000_000);
    }
}
