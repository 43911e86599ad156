//! Parents and children: an instance that was made by another one does not run without it and goes with it.
//!
//! One task for each child watches the parent. A pause or a hibernation is not a stop: the parent's processes are alive
//! then, and the child follows its own idle rules. Nor is a restart, in which the parent never is without a VM to come.

use std::sync::Arc;

use aegis_types::InstanceState;
use tokio::sync::watch;

use crate::error::Denied;
use crate::instance::Instance;
use crate::manager::Shared;
use crate::status::Status;

/// Makes what happens to the parent happen to the child. A child whose parent is gone is deleted. Nothing for an instance
/// without a parent.
pub(crate) fn keep_together(shared: &Arc<Shared>, child: Instance) {
    let Some(id) = &child.spec.parent else { return };
    match shared.instance(id) {
        Some(parent) => shared.spawn_beside(follow(parent.watch(), child)),
        None => shared.spawn_beside(async move { delete(&child).await }),
    }
}

async fn follow(mut watched: watch::Receiver<Status>, child: Instance) {
    let (mut child_ended, mut up) = (child.watch(), true);
    loop {
        let changed = |status: &Status| status.deleted || is_up(status) != up;
        let parent = tokio::select! {
            parent = watched.wait_for(changed) => parent.map(|status| (status.deleted, is_up(&status))),
            _ = child_ended.wait_for(|status| status.deleted) => return,
        };
        match parent {
            Ok((true, _)) => return delete(&child).await,
            Ok((false, now)) => {
                up = now;
                match child.parent_is(up).await {
                    Ok(()) => {}
                    Err(Denied::Deleted | Denied::ShuttingDown) => return,
                    Err(error) => {
                        tracing::warn!(%error, child = %child.spec.id, up, "a child did not follow its parent");
                    }
                }
            }
            // The driver of a deleted one is gone soon after it said so; any other end is the daemon's.
            Err(_) if watched.borrow().deleted => return delete(&child).await,
            Err(_) => return,
        }
    }
}

fn is_up(status: &Status) -> bool {
    status.state != InstanceState::Stopped
}

async fn delete(child: &Instance) {
    match child.delete().await {
        Ok(()) | Err(Denied::Deleted | Denied::ShuttingDown) => {}
        Err(error) => {
            // The next daemon tries again.
            tracing::error!(%error, child = %child.spec.id, "a child could not be deleted with its parent");
        }
    }
}
