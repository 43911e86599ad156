//! `aegis instance keepalive`.

use aegis_api::KeepaliveRequest;

use super::Context;
use crate::args::Keepalive;
use crate::error::CliError;
use crate::suggest::explain;
use crate::ui;

pub(super) async fn run(context: &Context, args: Keepalive) -> Result<(), CliError> {
    let target = args.target.target.as_str();
    let (outcome, done) = match args.ttl {
        Some(ttl) => {
            let lease = KeepaliveRequest { ttl_ms: ui::milliseconds(ttl), reason: args.reason };
            let done = format!("is kept awake for {}", ui::duration(ttl));
            (context.client.keepalive(target, &lease).await, done)
        }
        // Without a time it is a release: the command line has one or the other.
        None => (context.client.release(target).await, "is no longer kept awake".to_owned()),
    };
    match outcome {
        Ok(_) => ui::print(&format!("Instance {target} {done}\n")),
        Err(error) => Err(explain(&context.client, target, error).await),
    }
}
