//! Whole lives of instances against ports in memory. Time is the test's: a wait that nobody ends fails at once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod again;
mod boot;
mod crash;
mod exec;
mod family;
mod faults;
mod requests;
mod rest;
mod restore;

use std::sync::Arc;

use aegis_types::InstanceState;

use crate::testing::{Guest, World, spec};
use crate::{Instance, Manager};

/// An instance whose command runs.
async fn running() -> (Arc<World>, Manager, Instance, Arc<Guest>) {
    let (world, manager) = World::new();
    let instance = manager.create(spec(1, "web")).await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
    let guest = world.guest(0);
    (world, manager, instance, guest)
}
