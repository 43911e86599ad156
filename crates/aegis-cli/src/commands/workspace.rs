//! `aegis workspace`.

use aegis_api::WorkspaceSummary;

use super::Context;
use crate::args::WorkspaceCommand;
use crate::error::CliError;
use crate::ui;

pub(crate) async fn run(context: &Context, command: WorkspaceCommand) -> Result<u8, CliError> {
    match command {
        WorkspaceCommand::List(format) => list(context, format.json).await.map(|()| 0),
        WorkspaceCommand::Du { names, format } => usage(context, names, format.json).await.map(|()| 0),
        WorkspaceCommand::Delete { names } => delete(context, &names).await,
    }
}

async fn list(context: &Context, json: bool) -> Result<(), CliError> {
    let workspaces = context.client.workspaces().await?;
    if json {
        return ui::print_json(&workspaces);
    }
    if workspaces.is_empty() {
        return ui::print("No workspaces\n");
    }
    let rows: Vec<_> = workspaces.iter().map(row).collect();
    ui::print(&ui::table(["NAME", "INSTANCES", "KEPT", "PATH"], &rows))
}

fn row(workspace: &WorkspaceSummary) -> [String; 4] {
    let users: Vec<String> = workspace.instances.iter().map(ToString::to_string).collect();
    [
        workspace.name.clone(),
        if users.is_empty() { "-".to_owned() } else { users.join(" ") },
        if workspace.auto { "until its instance is deleted" } else { "yes" }.to_owned(),
        workspace.path.display().to_string(),
    ]
}

async fn usage(context: &Context, mut names: Vec<String>, json: bool) -> Result<(), CliError> {
    if names.is_empty() {
        names = context.client.workspaces().await?.into_iter().map(|workspace| workspace.name).collect();
    }
    let mut usages = Vec::new();
    for name in &names {
        usages.push(context.client.workspace_usage(name).await?);
    }
    if json {
        return ui::print_json(&usages);
    }
    let rows: Vec<_> = usages
        .into_iter()
        .map(|usage| [ui::size(usage.bytes), usage.entries.to_string(), usage.name])
        .collect();
    ui::print(&ui::table(["SIZE", "ENTRIES", "NAME"], &rows))
}

async fn delete(context: &Context, names: &[String]) -> Result<u8, CliError> {
    let mut code = 0;
    for name in names {
        match context.client.delete_workspace(name).await {
            Ok(_) => ui::print(&format!("Workspace {name} deleted\n"))?,
            Err(error) => {
                let error = CliError::from(error);
                ui::report(&error);
                code = error.kind().exit_code();
            }
        }
    }
    Ok(code)
}
