//! The client and what it remembers between requests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use aegis_types::ImageName;
use reqwest::Url;
use tokio::sync::OnceCell;

use crate::endpoint::{Endpoint, is_loopback, registry_host};
use crate::error::{Problem, RegistryError};
use crate::http::{Ask, Http, is_without_tls};
use crate::options::Options;
use crate::retry::Backoff;
use crate::token::Tokens;

/// A client of all registries. Clones share what was learned: tokens, and which registries have no TLS.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    /// Made at the first request: most daemons start without one, and certificates take their time.
    http: OnceCell<Http>,
    tokens: Tokens,
    /// Registries on this machine, by host, and whether they are reached without TLS.
    plain: Mutex<BTreeMap<String, bool>>,
}

impl Registry {
    /// A client. Nothing is read or connected yet.
    pub fn new(options: Options) -> Self {
        let (http, tokens, plain) = (OnceCell::new(), Tokens::default(), Mutex::default());
        Self(Arc::new(Inner { options, http, tokens, plain }))
    }

    /// Forgets the tokens that were got with logins so far. Call it after one has changed or was removed.
    pub fn forget_tokens(&self) {
        self.0.tokens.clear();
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    pub(crate) async fn http(&self) -> Result<&Http, Problem> {
        let make = || async {
            let options = self.0.options.clone();
            let made = tokio::task::spawn_blocking(move || Http::new(&options)).await;
            made.unwrap_or_else(|_| Err(Problem::SetUp("the daemon is shutting down".to_owned())))
        };
        self.0.http.get_or_try_init(make).await
    }

    /// Where an image may be, in the order in which it is looked for: mirrors, then the registry.
    pub(crate) fn endpoints(&self, name: &ImageName) -> Result<Vec<Endpoint>, RegistryError> {
        let host = registry_host(name.registry())?;
        let mirrors = self.0.options.mirrors.get(&host).into_iter().flatten();
        let mut endpoints: Vec<_> = mirrors.map(Endpoint::mirror).collect();
        endpoints.push(Endpoint::registry(&host)?);
        Ok(endpoints)
    }

    pub(crate) fn backoff(&self, endpoint: &Endpoint) -> Backoff {
        Backoff::new(&self.0.options.retries, endpoint.is_mirror)
    }

    /// The address above `v2/`. A registry on this machine is first tried with TLS, as Docker does; if it does not
    /// speak it, plain HTTP is used from then on.
    pub(crate) async fn base(&self, endpoint: &Endpoint) -> Result<Url, Problem> {
        let mut base = endpoint.base.clone();
        if base.scheme() != "https" || !is_loopback(&base) {
            return Ok(base);
        }
        let known = self.0.plain.lock().unwrap_or_else(PoisonError::into_inner).get(&endpoint.name).copied();
        let plain = match known {
            Some(plain) => plain,
            None => {
                let url = base.join("v2/").expect("a valid address");
                let plain = match self.http().await?.send(Ask::new(url)).await {
                    Err(problem) if is_without_tls(&problem) => true,
                    Err(problem @ (Problem::Connect { .. } | Problem::Certificate { .. })) => {
                        return Err(problem);
                    }
                    // Whatever it answers, it does so by TLS.
                    _ => false,
                };
                self.0
                    .plain
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(endpoint.name.clone(), plain);
                plain
            }
        };
        if plain {
            // The port of `localhost` without one is 80 then.
            base.set_scheme("http").expect("both are schemes of the web");
        }
        Ok(base)
    }
}
