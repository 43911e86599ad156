//! `aegis attach`.

use aegis_api::Attach as Request;

use super::{Context, exec};
use crate::args::Attach;
use crate::error::CliError;
use crate::limits::Limits;
use crate::signals::Signals;
use crate::streams::{self, Ended, Plan};
use crate::suggest::explain;
use crate::{terminal, ui};

pub(crate) async fn run(context: &Context, args: Attach) -> Result<u8, CliError> {
    let target = args.target.target.as_str();
    let mut limits = Limits::new(Signals::listen()?, None);
    let info = match limits.during(context.client.get(target)).await? {
        Ok(info) => info,
        Err(error) => return Err(explain(&context.client, target, error).await),
    };
    let stdin = info.stdin && !args.no_stdin;
    let raw = (stdin && info.tty).then_some(&args.detach_keys);
    if raw.is_some() {
        terminal::required("`--no-stdin` shows the output of the command")?;
    }
    // Who only looks on does not change the size.
    let request = Request { size: raw.and_then(|_| terminal::size()) };
    let process = match limits.during(context.client.attach(target, &request)).await? {
        Ok(process) => process,
        Err(error) => return Err(explain(&context.client, target, error).await),
    };
    let plan = Plan {
        stdin,
        size: raw.map(|_| request.size.unwrap_or(terminal::UNKNOWN)),
        raw,
        forward_signals: !info.tty && !args.no_stdin,
        leave_alone: info.tty,
    };
    match streams::join(process, &plan, &mut limits, || {}).await? {
        Ended::Done(done) => Ok(exec::ended(target, None, &done)),
        Ended::Lost(error) => Err(exec::lost(target).because(&error)),
        Ended::Detached => {
            ui::eprint(&format!(
                "\nDetached from instance `{target}`, which goes on; `aegis attach {target}` attaches again\n"
            ));
            Ok(0)
        }
    }
}
