//! The description of the API in OpenAPI, made from the annotations of the handlers and the types of `aegis-api`.
//!
//! What is the same everywhere is added here: the error, the parameters of paths, the ids of operations.

use std::fmt::Write as _;
use std::sync::LazyLock;

use aegis_api::{ErrorBody, ErrorCode, ExecDone, ExecStarted, LogEntry, PullEvent};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{self, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::{
    archives, copy, create, exec, files, idle, images, instances, logs, metrics, net, ports, pulls,
    registries, secrets, stats, status, streams, templates, update, wait, workspaces,
};

#[derive(OpenApi)]
#[openapi(
    info(title = "AegisVM", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    modifiers(&Common),
    components(schemas(ErrorBody, ErrorCode, ExecStarted, ExecDone, LogEntry, PullEvent)),
    paths(
        document,
        archives::import,
        archives::load,
        archives::save,
        copy::read,
        copy::stat,
        copy::write,
        create::create,
        exec::exec,
        streams::exec_attached,
        streams::attach,
        files::read,
        files::tree,
        files::write,
        idle::hibernate,
        idle::keep_awake,
        idle::release,
        images::delete,
        images::inspect,
        images::list,
        images::prune,
        images::usage,
        instances::delete,
        instances::disable,
        instances::info,
        instances::list,
        instances::pause,
        instances::prune,
        instances::restart,
        instances::resume,
        instances::start,
        instances::stop,
        logs::console,
        logs::logs,
        metrics::metrics,
        net::add_rule,
        net::log,
        net::show,
        ports::expose,
        ports::unexpose,
        pulls::pull,
        registries::list,
        registries::login,
        registries::logout,
        secrets::assign,
        secrets::audit,
        secrets::delete,
        secrets::list,
        secrets::reveal,
        secrets::rotate_key,
        secrets::set,
        stats::stats,
        status::shutdown,
        status::status,
        templates::build,
        templates::list,
        templates::prune,
        update::update,
        wait::wait,
        workspaces::delete,
        workspaces::list,
        workspaces::usage,
    )
)]
struct Api;

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = Api::openapi().to_pretty_json().expect("API descriptions serialise");
    text.push('\n');
    text
});

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

struct Common;

impl Modify for Common {
    fn modify(&self, api: &mut openapi::OpenApi) {
        api.info.description = Some(introduction());
        for (path, item) in &mut api.paths.paths {
            for operation in operations(item) {
                complete(path, operation);
            }
        }
    }
}

fn introduction() -> String {
    let mut text = "HTTP/1.1 with JSON over the unix socket `$AEGIS_HOME/aegisd.sock`. Unknown fields of requests are \
        ignored, absent options are omitted from answers. Streams are NDJSON, one object a line. Every answer that is \
        not a success has an `ErrorBody`, whose `code` is for programs:\n\n| code | status | meaning |\n|---|---|---|\n"
        .to_owned();
    for code in ErrorCode::ALL {
        let name = serde_json::to_value(code).expect("codes serialise");
        let name = name.as_str().unwrap_or_default();
        let _ = writeln!(text, "| `{name}` | {} | {} |", code.http_status(), code.meaning());
    }
    text
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.head, &mut item.patch]
        .into_iter()
        .flatten()
}

fn complete(path: &str, operation: &mut Operation) {
    // Functions have short names in their modules, and ids must be unique.
    let module = operation.tags.iter().flatten().next();
    if let (Some(module), Some(function)) = (module, &operation.operation_id) {
        operation.operation_id = Some(format!("{module}_{function}"));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            response.description = "Success".to_owned();
        }
    }
    let error = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
    let error = ResponseBuilder::new().description("Failure").content("application/json", error);
    operation.responses.responses.insert("default".to_owned(), error.build().into());
    let parameters = operation.parameters.get_or_insert_default();
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    for (at, name) in names.enumerate() {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description((name == "target").then_some("Id or name of the instance"))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        parameters.insert(at, RefOr::T(parameter.build()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::http::routes;

    #[test]
    fn the_api_reference_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, TEXT.as_str()).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == *TEXT,
            "docs/openapi.json is out of date: `UPDATE=1 cargo test -p aegisd reference`"
        );
    }

    #[test]
    fn every_route_is_described_and_every_description_has_a_route() {
        let described: BTreeSet<String> = Api::openapi().paths.paths.into_keys().collect();
        assert_eq!(described, routes().paths, "left: `openapi.rs`, right: `routes`");
    }

    #[test]
    fn operations_have_ids_of_their_own() {
        let mut api = Api::openapi();
        let ids: Vec<String> = api
            .paths
            .paths
            .values_mut()
            .flat_map(operations)
            .map(|o| o.operation_id.clone().unwrap())
            .collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    }

    #[test]
    fn every_code_is_explained() {
        let text = introduction();
        assert!(text.contains("| `port_taken` | 409 | The public port is in use. |"), "{text}");
        assert_eq!(text.matches("\n| `").count(), ErrorCode::ALL.len());
    }
}
