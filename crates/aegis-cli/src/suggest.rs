//! What the user may have meant.

use aegis_api::ErrorCode;
use aegis_client::{Client, ClientError};

use crate::error::CliError;

/// The error of a request about an instance. When there is no such instance, names that look alike are offered.
pub(crate) async fn explain(client: &Client, target: &str, error: ClientError) -> CliError {
    match error {
        ClientError::Api { body, .. } if body.code == ErrorCode::InstanceNotFound => {
            not_found(client, target).await
        }
        other => other.into(),
    }
}

async fn not_found(client: &Client, target: &str) -> CliError {
    let error = CliError::failure(format!("no instance named `{target}`"));
    // The list only makes the message better.
    let instances = client.list(None).await.unwrap_or_default();
    let names = instances.iter().flat_map(|i| [i.handle.as_ref().map(|h| h.as_str()), Some(i.id.as_str())]);
    match closest(target, names.flatten()) {
        Some(name) => error.hint(format!("did you mean `{name}`?")),
        None => error.hint("`aegis instance list` shows all instances"),
    }
}

fn closest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let alike = names.map(|name| (strsim::damerau_levenshtein(wanted, name), name));
    let close = alike.filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, 3));
    close.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_similar_names_are_offered() {
        let names = ["web", "database", "db"];
        assert_eq!(closest("wbe", names.into_iter()), Some("web"));
        assert_eq!(closest("databse", names.into_iter()), Some("database"));
        assert_eq!(closest("mail", names.into_iter()), None);
    }
}
