//! `aegis update`.

use aegis_api::UpdateInstance;

use super::Context;
use crate::args::Update;
use crate::error::CliError;
use crate::suggest::explain;
use crate::ui;

pub(crate) async fn run(context: &Context, args: Update) -> Result<(), CliError> {
    let target = &args.target.target;
    let update = UpdateInstance {
        memory_mb: args.memory,
        disk_mb: args.disk,
        vcpus: args.cpus,
        env: args.env.into_iter().collect(),
        unset_env: args.unset_env,
        pause_after_ms: args.pause_after.map(ui::milliseconds),
        never_pause: args.never_pause,
        hibernate_after_ms: args.hibernate_after.map(ui::milliseconds),
        no_hibernate: args.no_hibernate,
        idle_policy: args.idle_policy,
    };
    let updated = match context.client.update(target, &update).await {
        Ok(updated) => updated,
        Err(error) => return Err(explain(&context.client, target, error).await),
    };
    for warning in &updated.warnings {
        ui::warn(warning);
    }
    let mut text = format!("Instance {target} updated\n");
    if updated.restart_required {
        text.push_str(&format!(
            "Its VM is as before until its next start: `aegis instance restart {target}`\n"
        ));
    }
    ui::print(&text)
}
