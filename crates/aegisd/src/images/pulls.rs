//! All pulls of the daemon: one for each name, which whoever wants the image joins.
//!
//! **Invariant:** a pull goes on only while somebody wants it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aegis_registry::Registry;
use aegis_types::ImageName;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Images;
use super::pull::{PullError, PullState, Pulled, pull};

/// Between two looks at a download.
const PACE: Duration = Duration::from_millis(100);

/// See the module.
pub(crate) struct Pulls {
    images: Arc<Images>,
    registry: Registry,
    active: Mutex<HashMap<ImageName, Active>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

struct Active {
    state: watch::Receiver<PullState>,
    cancel: CancellationToken,
    /// Number of those who want it; nobody can join any more when it is 0.
    wanted: usize,
}

/// The wish for an image, and how far it is. Who drops this wants it no more.
pub(crate) struct Following {
    state: watch::Receiver<PullState>,
    pulls: Arc<Pulls>,
    name: ImageName,
    /// Layers were on their way when it was last looked at.
    downloading: bool,
}

impl Pulls {
    pub(crate) fn new(images: Arc<Images>, registry: Registry) -> Arc<Self> {
        Arc::new(Self {
            images,
            registry,
            active: Mutex::default(),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    fn active(&self) -> MutexGuard<'_, HashMap<ImageName, Active>> {
        self.active.lock().expect("no code panics while it holds this")
    }

    /// Joins the pull of this name, or begins it.
    pub(crate) async fn pull(self: &Arc<Self>, name: &ImageName) -> Following {
        loop {
            let mut given_up = match self.join(name) {
                Ok(state) => {
                    return Following {
                        state,
                        pulls: Arc::clone(self),
                        name: name.clone(),
                        downloading: false,
                    };
                }
                Err(given_up) => given_up,
            };
            // Its task is about to let go of what it has.
            while given_up.changed().await.is_ok() {}
        }
    }

    /// The state of a pull that goes on; or of one that nobody wanted, which ends when its sender is gone.
    fn join(
        self: &Arc<Self>,
        name: &ImageName,
    ) -> Result<watch::Receiver<PullState>, watch::Receiver<PullState>> {
        let mut active = self.active();
        if let Some(pull) = active.get_mut(name) {
            if pull.wanted == 0 {
                return Err(pull.state.clone());
            }
            pull.wanted += 1;
            return Ok(pull.state.clone());
        }
        let (sender, state) = watch::channel(PullState::Resolving);
        let cancel = self.cancel.child_token();
        active.insert(name.clone(), Active { state: state.clone(), cancel: cancel.clone(), wanted: 1 });
        drop(active);
        // Not in the task of whoever asked: others may want it longer.
        let (this, name) = (Arc::clone(self), name.clone());
        self.tasks.spawn(async move { this.run(name, sender, cancel).await });
        Ok(state)
    }

    async fn run(&self, name: ImageName, state: watch::Sender<PullState>, cancel: CancellationToken) {
        let outcome = tokio::select! {
            outcome = pull(&self.images, &self.registry, &name, &state) => outcome,
            () = cancel.cancelled() => Err(PullError::GivenUp),
        };
        match &outcome {
            Ok(Pulled { image, changed }) => tracing::info!(%name, digest = image.digest, changed, "pulled"),
            Err(PullError::GivenUp) => tracing::info!(%name, "a pull was given up"),
            Err(error) => tracing::warn!(%name, error = %crate::text::chain(error), "cannot pull an image"),
        }
        // From now on another pull may begin: nothing of this one is left.
        self.active().remove(&name);
        state.send_replace(PullState::Done(outcome.map(Arc::new).map_err(Arc::new)));
    }

    fn leave(&self, name: &ImageName, state: &watch::Receiver<PullState>) {
        let mut active = self.active();
        // There may be another pull of this name by now.
        if let Some(pull) = active.get_mut(name).filter(|pull| pull.state.same_channel(state)) {
            pull.wanted = pull.wanted.saturating_sub(1);
            if pull.wanted == 0 {
                pull.cancel.cancel();
            }
        }
    }

    /// Gives up everything; returns when nothing is left of it.
    pub(crate) async fn shutdown(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Following {
    /// How far it is, marked as seen.
    pub(crate) fn state(&mut self) -> PullState {
        let state = self.state.borrow_and_update().clone();
        self.downloading = matches!(state, PullState::Downloading(_));
        state
    }

    /// Waits until something has changed since [`Following::state`], and while layers come, not for the smallest piece.
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) {
        // The sender says its last word before it goes.
        let _ = self.state.changed().await;
        if !self.downloading {
            return;
        }
        let goes_on = |state: &PullState| !matches!(state, PullState::Downloading(_));
        let _ = timeout(PACE, self.state.wait_for(goes_on)).await;
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.pulls.leave(&self.name, &self.state);
    }
}
