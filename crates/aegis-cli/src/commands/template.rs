//! `aegis template`.

use aegis_api::{BuildTemplate, PruneTemplates, TemplateState, TemplateSummary};
use aegis_types::DiskSize;

use super::Context;
use crate::args::TemplateCommand;
use crate::error::{CliError, Kind};
use crate::progress::Spinner;
use crate::ui;

pub(crate) async fn run(context: &Context, command: TemplateCommand) -> Result<(), CliError> {
    match command {
        TemplateCommand::List(format) => list(context, format.json).await,
        TemplateCommand::Prune { older_than } => {
            let reply = context.client.prune_templates(&PruneTemplates { max_age: older_than }).await?;
            let freed = ui::size(reply.freed_bytes);
            ui::print(&format!("Pruned {} template(s), {freed} are free again\n", reply.pruned))
        }
        TemplateCommand::Build { image, memory, cpus } => {
            build(context, &BuildTemplate { image_ref: image, memory_mb: memory, vcpus: cpus }).await
        }
    }
}

async fn list(context: &Context, json: bool) -> Result<(), CliError> {
    let templates = context.client.templates().await?;
    if json {
        return ui::print_json(&templates);
    }
    if templates.is_empty() {
        return ui::print("No templates\n");
    }
    let rows: Vec<_> = templates.iter().map(row).collect();
    let header = ["KEY", "IMAGE", "MEMORY", "CPUS", "DISK", "SIZE", "STATE", "CREATED", "LAST USED"];
    ui::print(&ui::table(header, &rows))?;
    for template in &templates {
        if let Some(problem) = &template.problem {
            ui::warn(&format!("template {}: {problem}", short(template)));
        }
    }
    Ok(())
}

fn row(template: &TemplateSummary) -> [String; 9] {
    let loaded = if template.loaded { ", loaded" } else { "" };
    [
        short(template),
        template.image.to_string(),
        template.memory_mb.to_string(),
        template.vcpus.get().to_string(),
        DiskSize::new(template.disk_mb).map_or_else(|_| "-".to_owned(), |size| size.to_string()),
        ui::size(template.size_bytes),
        format!("{}{loaded}", template.state.as_str()),
        ui::time(template.created_at),
        template.last_used_at.map_or_else(|| "-".to_owned(), ui::time),
    ]
}

/// Enough of a key to tell templates apart.
fn short(template: &TemplateSummary) -> String {
    template.key.chars().take(12).collect()
}

async fn build(context: &Context, request: &BuildTemplate) -> Result<(), CliError> {
    let spinner = Spinner::start("building the template");
    let built = context.client.build_template(request).await;
    spinner.clear();
    let template = built?;
    let what = format!("{}, {}, {} CPU(s)", template.image, template.memory_mb, template.vcpus.get());
    if template.state == TemplateState::Failed {
        let error = CliError::new(Kind::VmFailed, format!("cannot build a template ({what})"));
        let error = template.problem.into_iter().fold(error, CliError::cause);
        return Err(error.hint("instances boot instead; `aegis doctor` checks what VMs need"));
    }
    let size = ui::size(template.size_bytes);
    ui::print(&format!("Template {}: {} ({what}, {size})\n", template.state.as_str(), short(&template)))
}
