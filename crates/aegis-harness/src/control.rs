//! The control service: see [`aegis_proto::control`].

use std::sync::Arc;
use std::time::Duration;

use aegis_link::rpc::Handler;
use aegis_proto::control::{
    CLOCK_SET, ClockSet, PARK, RUN, Run, SHUTDOWN, STATUS, Shutdown, Started, Status,
};
use aegis_proto::jsonrpc::{FAILED, METHOD_NOT_FOUND, RpcError, parse_params};
use async_trait::async_trait;
use serde_json::{Value, to_value};

use crate::VERSION;
use crate::harness::Core;
use crate::primary::RunError;
use crate::{reaper, secrets, warm};

pub(crate) struct Control(pub(crate) Arc<Core>);

#[async_trait]
impl Handler for Control {
    async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let core = &self.0;
        match method {
            RUN => run(core, parse_params(params)?).await,
            STATUS => {
                let (primary_pid, primary_exit) = core.primary.status();
                to_value(Status {
                    version: VERSION.to_owned(),
                    primary_pid,
                    primary_exit,
                    secret_files: true,
                    streams: true,
                })
                .map_err(RpcError::failed)
            }
            CLOCK_SET => {
                let ClockSet { time_unix_ns } = parse_params(params)?;
                core.sys
                    .set_clock(Duration::from_nanos(time_unix_ns))
                    .map_err(|error| RpcError::failed(format!("cannot set the clock: {error}")))?;
                Ok(Value::Null)
            }
            SHUTDOWN => {
                let Shutdown { grace_ms } = parse_params(params)?;
                core.begin_shutdown(Duration::from_millis(grace_ms));
                Ok(Value::Null)
            }
            PARK => park(core).await,
            unknown => Err(RpcError {
                code: METHOD_NOT_FOUND,
                message: format!("unknown method `{unknown}`"),
                data: None,
            }),
        }
    }
}

/// What is saved must be complete, and the disks must make sense without the memory: that may be thrown away.
async fn park(core: &Arc<Core>) -> Result<Value, RpcError> {
    core.ready_to_start().await.map_err(RpcError::failed)?;
    let sys = Arc::clone(&core.sys);
    // Without a command it becomes a template.
    let unused = core.primary.status().0.is_none();
    let synced = tokio::task::spawn_blocking(move || {
        if unused {
            warm::read_common_files(&*sys);
        }
        sys.sync();
    });
    let synced = synced.await;
    synced.map_err(|error| RpcError::failed(format!("cannot write the disks: {error}")))?;
    if unused {
        core.mounts.prepare().await;
        warm::wait_for_network(&*core.sys).await;
        warm::start_threads().await;
    }
    // Last: until here something may still have had to be read or written there.
    core.mounts.drain().await.map_err(RpcError::failed)?;
    core.park();
    Ok(Value::Null)
}

/// Files first: the process may look for them with its first step.
fn start(core: &Core, run: &Run) -> Result<Result<reaper::Started, RunError>, RpcError> {
    if core.primary.status().0.is_none() {
        secrets::write(&*core.sys, &run.secret_files).map_err(RpcError::failed)?;
    }
    Ok(core.primary.start(&*core.sys, &core.reaper, &run.process, run.streams))
}

async fn run(core: &Arc<Core>, run: Run) -> Result<Value, RpcError> {
    core.ready_to_start().await.map_err(RpcError::failed)?;
    let (starting, streams) = (Arc::clone(core), run.streams);
    let started = tokio::task::spawn_blocking(move || start(&starting, &run)).await;
    let started = started.map_err(|error| RpcError::failed(format!("cannot start it: {error}")))??;
    let reaper::Started { pid, input, output } = started.map_err(|error| {
        let data = match &error {
            RunError::AlreadyStarted => None,
            RunError::Failed(failure) => to_value(failure).ok(),
        };
        RpcError { code: FAILED, message: error.to_string(), data }
    })?;
    let (writing, pieces, terminal) = input.split();
    core.primary.attachments.connect(pid, streams, pieces, terminal);
    core.tasks.spawn(writing);
    let (primary, delivery) = (Arc::clone(&core.primary), core.deliver());
    core.tasks.spawn(async move {
        primary.keep(output).await;
        drop(delivery);
    });
    to_value(Started { pid }).map_err(RpcError::failed)
}
