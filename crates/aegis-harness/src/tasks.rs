//! The tasks of a harness: owned in one place, so that they end with it.

use std::future::Future;
use std::sync::Mutex;

use tokio::task::JoinSet;

#[derive(Default)]
pub(crate) struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    /// Starts a task.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().expect("no panic while held");
        // Ended tasks are let go of here; otherwise every exec would leave a result behind.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Ends every task at its next await.
    pub(crate) fn abort(&self) {
        self.0.lock().expect("no panic while held").abort_all();
    }
}
