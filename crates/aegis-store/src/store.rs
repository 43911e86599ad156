//! The thread that owns the connection, and the handle to it.

use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::thread;

use aegis_types::{GuestPort, InstanceId, SecretName, WantedSecrets};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::{ExposeRow, InstanceRow, Sealed, SecretRow, StoreError, schema, secret};

/// Calls that wait for the thread; the next caller waits to be let in.
const QUEUE: usize = 64;

enum Message {
    Work(Box<dyn FnOnce(&mut Connection) + Send>),
    /// Answered when the file is closed.
    Close(oneshot::Sender<()>),
}

/// The registry. Clones share one connection; the thread ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    work: mpsc::Sender<Message>,
}

impl Store {
    /// Opens the registry, creating it (mode 0600) or migrating it where needed. Blocks.
    ///
    /// # Errors
    /// See [`StoreError`]; a file that cannot be used is left as it is.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let opened = |source| StoreError::Open { path: path.to_owned(), source };
        // SQLite gives the -wal and -shm files the mode of the database.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        file.and_then(|file| file.set_permissions(Permissions::from_mode(0o600))).map_err(opened)?;
        let mut connection = connect(path)?;
        schema::migrate(&mut connection, schema::STEPS)?;
        let (work, queue) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || serve(connection, queue))
            .map_err(|e| opened(io::Error::other(e)))?;
        Ok(Store { work })
    }

    /// Every instance, oldest first.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for a row that cannot be read: it is never left out, because what has no row is
    /// taken for garbage.
    pub async fn load(&self) -> Result<Vec<InstanceRow>, StoreError> {
        self.run(|connection| InstanceRow::load_all(connection)).await
    }

    /// Inserts or replaces; durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::HandleTaken`], or the file could not be written. Nothing was changed.
    pub async fn save(&self, row: InstanceRow) -> Result<(), StoreError> {
        self.run(move |connection| row.save(connection)).await
    }

    /// Deletes, with its exposed ports and what it has of secrets; a missing row is a success.
    ///
    /// # Errors
    /// The file could not be written. Nothing was changed.
    pub async fn delete(&self, id: InstanceId) -> Result<(), StoreError> {
        self.run(move |connection| {
            let failed = StoreError::sqlite("delete an instance");
            let transaction = connection.transaction().map_err(&failed)?;
            transaction.execute("DELETE FROM instances WHERE id = ?1", [id.as_str()]).map_err(&failed)?;
            secret::forget(&transaction, Some(&id))?;
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// Every exposed port, those of one instance together.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for a row that cannot be read.
    pub async fn load_exposes(&self) -> Result<Vec<ExposeRow>, StoreError> {
        self.run(|connection| ExposeRow::load_all(connection)).await
    }

    /// Inserts the port of an instance, or replaces what is said about it; durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::NoInstance`], or the file could not be written. Nothing was changed.
    pub async fn save_expose(&self, row: ExposeRow) -> Result<(), StoreError> {
        self.run(move |connection| row.save(connection)).await
    }

    /// Deletes the port of an instance; a missing row is a success.
    ///
    /// # Errors
    /// The file could not be written. Nothing was changed.
    pub async fn delete_expose(&self, instance: InstanceId, guest: GuestPort) -> Result<(), StoreError> {
        self.run(move |connection| ExposeRow::delete(connection, &instance, guest)).await
    }

    /// Every secret, by name.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for a row that cannot be read.
    pub async fn load_secrets(&self) -> Result<Vec<SecretRow>, StoreError> {
        self.run(|connection| SecretRow::load_all(connection)).await
    }

    /// Inserts or replaces a secret; durable when it returns.
    ///
    /// # Errors
    /// The file could not be written. Nothing was changed.
    pub async fn save_secret(&self, row: SecretRow) -> Result<(), StoreError> {
        self.run(move |connection| row.save(connection)).await
    }

    /// Deletes a secret. Whether there was one.
    ///
    /// # Errors
    /// The file could not be written. Nothing was changed.
    pub async fn delete_secret(&self, name: SecretName) -> Result<bool, StoreError> {
        self.run(move |connection| secret::delete(connection, &name)).await
    }

    /// Everything that is encrypted.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for a row that cannot be read.
    pub async fn load_sealed(&self) -> Result<Sealed, StoreError> {
        self.run(|connection| Sealed::load(connection)).await
    }

    /// Replaces what is encrypted, in one transaction; what is not there any more is left out.
    ///
    /// # Errors
    /// The file could not be written. Nothing was changed.
    pub async fn replace_sealed(&self, sealed: Sealed) -> Result<(), StoreError> {
        self.run(move |connection| sealed.replace(connection)).await
    }

    /// Keeps which secrets an instance wants, which need not be in the registry yet.
    ///
    /// # Errors
    /// The file could not be written. Nothing was changed.
    pub async fn save_wanted(&self, id: InstanceId, wanted: WantedSecrets) -> Result<(), StoreError> {
        self.run(move |connection| secret::save_wanted(connection, &id, &wanted)).await
    }

    /// Which secrets an instance wants; none without a row.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for a row that cannot be read.
    pub async fn load_wanted(&self, id: InstanceId) -> Result<WantedSecrets, StoreError> {
        self.run(move |connection| secret::load_wanted(connection, &id)).await
    }

    /// Keeps what the current boot of an instance was given, encrypted; `None`: nothing. Without [`Store::save_wanted`]
    /// before it changes nothing.
    ///
    /// # Errors
    /// The file could not be written. Nothing was changed.
    pub async fn save_injected(&self, id: InstanceId, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        self.run(move |connection| secret::save_injected(connection, &id, value.as_deref())).await
    }

    /// Removes what an instance has of secrets, or what is left of instances that are not in the registry.
    ///
    /// # Errors
    /// The file could not be written. Nothing was changed.
    pub async fn forget_secrets(&self, id: Option<InstanceId>) -> Result<(), StoreError> {
        self.run(move |connection| secret::forget(connection, id.as_ref())).await
    }

    /// Closes the file after what was asked for before, which folds its journal into it. Later calls fail.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.work.send(Message::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// Once begun, work is carried out even if the caller no longer waits for it.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |connection: &mut Connection| {
            // Nobody may wait for the answer any more.
            let _ = reply.send(work(connection));
        });
        self.work.send(Message::Work(work)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { path: path.to_owned(), reason };
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            corrupt(source.to_string())
        }
        _ => StoreError::Sqlite { action: "open the registry", source },
    };
    let connection = Connection::open(path).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    // SQLite forgets this with every connection.
    connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict == "ok" { Ok(connection) } else { Err(corrupt(verdict)) }
}

fn serve(mut connection: Connection, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.blocking_recv() {
        match message {
            Message::Work(work) => work(&mut connection),
            Message::Close(done) => {
                drop(connection);
                let _ = done.send(());
                return;
            }
        }
    }
}
