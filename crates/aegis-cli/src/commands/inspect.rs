//! `aegis inspect`.

use aegis_api::ErrorCode;
use aegis_client::ClientError;

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
    {
        let images = context.client.images().await?;
        if let Some(image) = images.iter().find(|image| image.name.as_str() == name) {
            return ui::print_json(image);
        }
    }
    Err(explain(&context.client, name, error).await)
}
