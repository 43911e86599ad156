//! `aegis inspect`.

use aegis_api::ErrorCode;
use aegis_client::ClientError;
use aegis_types::ImageName;

use super::Context;
use crate::error::CliError;
use crate::suggest::explain;
use crate::ui;

pub(crate) async fn run(context: &Context, name: &str) -> Result<(), CliError> {
    let error = match context.client.get(name).await {
        Ok(info) => return ui::print_json(&info),
        Err(error) => error,
    };
    if let ClientError::Api { body, .. } = &error
        && body.code == ErrorCode::InstanceNotFound
        && let Ok(image) = ImageName::parse(name)
    {
        match context.client.image(&image).await {
            Ok(image) => return ui::print_json(&image),
            Err(ClientError::Api { body, .. }) if body.code == ErrorCode::ImageNotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(explain(&context.client, name, error).await)
}
