//! Being the input and the terminal of an instance's command until it ends.

use aegis_api::{Attach, CreateInstance, ExecDone, WaitFor, WaitQuery};
use aegis_client::{Client, ClientError};
use aegis_types::{InstanceId, InstanceState};

use super::{End, verdict};
use crate::detach_keys::DetachKeys;
use crate::error::{CliError, Kind};
use crate::limits::Limits;
use crate::progress::Spinner;
use crate::streams::{self, Ended, Plan};
use crate::terminal;

/// A VM that was lost is being cleared away for so long.
const CLEARED_MS: u64 = 5000;

/// Attaches at once; the guest keeps the end of a quick command until then.
pub(super) async fn attend(
    client: &Client,
    id: &InstanceId,
    instance: &CreateInstance,
    keys: &DetachKeys,
    spinner: &Spinner,
    limits: &mut Limits,
) -> Result<End, CliError> {
    let attach = Attach { size: terminal::size().filter(|_| instance.tty) };
    let process = match limits.during(client.attach(id.as_str(), &attach)).await? {
        Ok(process) => process,
        Err(error @ ClientError::Api { .. }) => return Err(error.into()),
        Err(error) => return unknown(client, id, error.into(), limits).await,
    };
    let raw = (instance.stdin && instance.tty).then_some(keys);
    let plan = Plan {
        stdin: instance.stdin,
        size: instance.tty.then(|| attach.size.unwrap_or(terminal::UNKNOWN)),
        raw,
        forward_signals: raw.is_none(),
        // It is deleted.
        leave_alone: false,
    };
    match streams::join(process, &plan, limits, || spinner.clear()).await? {
        Ended::Detached => Ok(End::Detached),
        Ended::Lost(error) => unknown(client, id, lost().because(&error), limits).await,
        Ended::Done(ExecDone { exit_code: 125, error: Some(cause), .. }) => {
            unknown(client, id, lost().cause(cause), limits).await
        }
        Ended::Done(done) => verdict::ended(done.exit_code, done.error.as_deref()).map(End::Exited),
    }
}

fn lost() -> CliError {
    CliError::new(Kind::VmFailed, "the command was lost before its end")
}

/// The streams do not say how the command ended. The instance may; if not, this is the error.
async fn unknown(
    client: &Client,
    id: &InstanceId,
    error: CliError,
    limits: &mut Limits,
) -> Result<End, CliError> {
    let query = WaitQuery { goal: WaitFor::Stopped, port: None, timeout_ms: Some(CLEARED_MS) };
    // Whatever comes of it, the state is looked at.
    drop(limits.during(client.wait(id.as_str(), &query)).await?);
    match limits.during(client.get(id.as_str())).await? {
        Ok(info) if info.state == InstanceState::Stopped => verdict::stopped(&info, &[]).map(End::Exited),
        _ => Err(error),
    }
}
