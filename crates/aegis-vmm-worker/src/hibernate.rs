//! Saving the VM and ending it.
//!
//! ```text
//! (paused? run) → park the guest → save the devices → saved.json → end the VMM → give back unused memory
//!       └───────────────┴──────────────────┴───────────────┴─ on an error: remove the files, run on, greet again
//! ```
//!
//! **Invariant:** `saved.json` exists only while the CPUs do not run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use aegis_link::host::HostLink;
use aegis_proto::saved::{SAVED_VERSION, SavedVm};
use aegis_proto::worker::{ExitReason, Exited, Phase, WorkerConfig};
use aegis_types::Ram;
use aegis_vmm::{SavedState, VmExit};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::boot::{message_of, reap};
use crate::driver::{Driver, Live, Reply, Request, answer, gone, respond, stopped};
use crate::guest::now_unix_ns;
use crate::memory;
use crate::mounts::MountThread;
use crate::saved::{Saved, host_boot};

/// For the guest to write its disks.
const PARK_DEADLINE: Duration = Duration::from_secs(20);

/// What came first.
enum Outcome {
    Saved(Result<(), String>),
    Gone(VmExit),
    /// A stop was asked for, by somebody who may be waiting.
    Stopped(Option<Reply>),
}

impl Driver {
    /// Saves the VM. `Ok` when it runs on, for whatever reason.
    pub(crate) async fn hibernate(&mut self, live: &mut Live, reply: Reply) -> Result<(), Exited> {
        let ram = match self.memory_file() {
            Ok(ram) => ram,
            Err(why) => {
                respond(reply, Err(why));
                return Ok(());
            }
        };
        let link = match self.running_link(live).await {
            Ok(Ok(link)) => link,
            Ok(Err(why)) => {
                respond(reply, Err(why));
                return Ok(());
            }
            Err(exited) => {
                respond(reply, Err(exited.message.clone()));
                return Err(exited);
            }
        };
        let files = Saved::beside(&ram);
        let mut replies = vec![reply];
        self.view.send_modify(|view| (view.phase, view.link) = (Phase::Hibernating, None));
        // Closed by parking, and our calls with it.
        live.guest.set_link(None);
        let started = Instant::now();
        let saving =
            Saving { files: &files, config: &self.config, mounts: self.outside.mounts.as_ref(), live };
        let outcome = tokio::select! {
            biased;
            saved = saving.save(&link) => Outcome::Saved(saved),
            exit = live.vm.exited() => Outcome::Gone(exit),
            stop = next_stop(&mut self.requests, &mut replies) => Outcome::Stopped(stop),
        };
        match outcome {
            Outcome::Saved(Ok(())) => {
                let saved = started.elapsed();
                reap(live.vm.as_ref()).await;
                let gone = started.elapsed();
                if let Err(e) = memory::trim(&ram) {
                    tracing::warn!("the memory file keeps blocks that it does not need: {e}");
                }
                let took = started.elapsed();
                let (ended_ms, trimmed_ms) = ((gone - saved).as_millis(), (took - gone).as_millis());
                tracing::info!(took_ms = took.as_millis(), ended_ms, trimmed_ms, "hibernated");
                replies.into_iter().for_each(|reply| respond(reply, Ok(())));
                Err(Exited { reason: ExitReason::Hibernated, message: "hibernated".to_owned() })
            }
            Outcome::Saved(Err(why)) => {
                tracing::warn!("cannot hibernate: {why}");
                files.remove();
                let outcome = self.reconnect(live).await;
                let why = match &outcome {
                    Ok(()) => why,
                    Err(exited) => format!("{why}; then {}", exited.message),
                };
                replies.into_iter().for_each(|reply| respond(reply, Err(why.clone())));
                outcome
            }
            Outcome::Gone(exit) => {
                files.remove();
                let exited = gone(exit);
                replies.into_iter().for_each(|reply| respond(reply, Err(exited.message.clone())));
                Err(exited)
            }
            Outcome::Stopped(stop) => {
                reap(live.vm.as_ref()).await;
                files.remove();
                let why = "the VM was stopped instead";
                replies.into_iter().for_each(|reply| respond(reply, Err(why.to_owned())));
                answer(stop);
                // It may be parked, so it is not asked.
                Err(stopped("stopped by force while it was being hibernated"))
            }
        }
    }

    /// The link of a guest whose CPUs run: halted ones could not park, and a VM that was saved while halted would stay
    /// so. The inner error leaves everything as it was.
    async fn running_link(&mut self, live: &mut Live) -> Result<Result<HostLink, String>, Exited> {
        if live.paused {
            if let Err(e) = live.vm.resume().await {
                return Ok(Err(message_of(&e)));
            }
            live.paused = false;
            self.set_net_paused(false);
        }
        if live.guest.link().is_none() {
            self.reconnect(live).await?;
        }
        Ok(live.guest.link().cloned().ok_or_else(|| "there is no guest link".to_owned()))
    }

    /// The file with the memory; a VM without cannot be saved.
    fn memory_file(&self) -> Result<PathBuf, String> {
        if !self.vmm.capabilities().save {
            return Err(format!("{} cannot save a VM", self.vmm.capabilities().name));
        }
        match &self.config.vm.ram {
            Ram::File { path } => Ok(path.clone()),
            Ram::Anonymous | Ram::Template => {
                Err("this VM cannot hibernate, because its memory is not a file".to_owned())
            }
        }
    }
}

/// What is needed up to `saved.json`.
struct Saving<'a> {
    files: &'a Saved,
    config: &'a WorkerConfig,
    mounts: Option<&'a MountThread>,
    live: &'a Live,
}

impl Saving<'_> {
    /// On an error the VM runs, and its link is gone.
    async fn save(&self, link: &HostLink) -> Result<(), String> {
        let started = Instant::now();
        let parked = timeout(PARK_DEADLINE, link.park()).await;
        // Kept open until the devices are saved: the restored guest then finds its host still there.
        let _carrier = parked
            .map_err(|_| format!("the guest did not park within {} s", PARK_DEADLINE.as_secs()))?
            .map_err(|e| format!("the guest did not park: {}", message_of(&e)))?;
        if let Some(mounts) = self.mounts {
            mounts.save(self.files.directory()).await?;
        }
        let parked_ms = started.elapsed().as_millis();
        let state = self.live.vm.save(&self.files.state()).await.map_err(|e| message_of(&e))?;
        let saved_ms = started.elapsed().as_millis() - parked_ms;
        tracing::info!(parked_ms, saved_ms, bytes = state.bytes, "parked and saved");
        let completed = self.describe(state).and_then(|saved| self.files.complete(&saved));
        if let Err(e) = completed {
            let why = format!("cannot write down that the VM is saved: {e}");
            // First, because a VM that runs is not a saved one.
            self.files.remove();
            let resumed = self.live.vm.resume().await;
            resumed.map_err(|e| format!("{why}, nor let it go on: {}", message_of(&e)))?;
            return Err(why);
        }
        Ok(())
    }

    fn describe(&self, state: SavedState) -> std::io::Result<SavedVm> {
        Ok(SavedVm {
            version: SAVED_VERSION,
            machine: self.config.machine.clone(),
            boot_id: self.live.boot_id.clone(),
            ram_bytes: u64::from(self.config.vm.memory.get()) << 20,
            state_bytes: state.bytes,
            state_sha256: state.sha256,
            host_boot: host_boot()?,
            durable: false,
            generation: self.live.generation,
            saved_unix_ns: now_unix_ns(),
        })
    }
}

/// The next stop request. Whoever wants to hibernate as well gets the same answer; everything else is refused.
async fn next_stop(requests: &mut mpsc::Receiver<Request>, replies: &mut Vec<Reply>) -> Option<Reply> {
    loop {
        match requests.recv().await {
            Some(Request::Stop { reply, .. }) => return reply,
            Some(Request::Hibernate(reply)) => replies.push(reply),
            Some(Request::Pause(reply) | Request::Resume(reply)) => {
                respond(reply, Err("the VM is being hibernated".to_owned()));
            }
            None => std::future::pending().await,
        }
    }
}
