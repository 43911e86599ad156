//! Requests with what the registry wants to see first.

use reqwest::{Response, StatusCode, Url};

use crate::challenge::{self, Challenge};
use crate::credentials::{Credential, CredentialError, Found, lookup};
use crate::endpoint::{Endpoint, registry_host};
use crate::error::{Problem, RegistryError};
use crate::http::Ask;
use crate::registry::Registry;
use crate::token::{self, Authorization};

/// A request to an endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    /// Of the image.
    pub(crate) repository: &'a str,
    /// Below the repository, as `blobs/sha256:…`.
    pub(crate) path: &'a str,
    pub(crate) accept: Option<&'static str>,
    /// Only what is behind this many bytes.
    pub(crate) skip: u64,
}

impl Registry {
    /// Gets something of a repository. The answer is a success, or 416 if bytes were to be skipped.
    ///
    /// What let us in before is tried first; a challenge is answered once.
    pub(crate) async fn get(&self, endpoint: &Endpoint, query: Query<'_>) -> Result<Response, Problem> {
        let Query { repository, path, accept, skip } = query;
        let base = self.base(endpoint).await?;
        let url = base
            .join(&format!("v2/{repository}/{path}"))
            .map_err(|_| Problem::Malformed(format!("{path} is no part of an address")))?;
        let scope = format!("repository:{repository}:pull");
        let key = (base.to_string(), scope.clone());
        let http = self.http().await?;
        let ask = |authorization: Option<&Authorization>| -> Result<Ask<'static>, Problem> {
            let authorization = authorization.map(Authorization::header).transpose()?;
            Ok(Ask { url: url.clone(), authorization, accept, skip, form: None })
        };
        let mut authorization = self.tokens().get(&key);
        let mut response = http.send(ask(authorization.as_ref())?).await?;
        if authorization.is_some() && is_denial(&response) {
            // It may have ended early, or be from before a login.
            self.tokens().remove(&key);
            authorization = None;
            response = http.send(ask(None)?).await?;
        }
        let mut problem = None;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(challenge) = challenge_of(&response, &url)
        {
            let found = lookup(self.options(), &endpoint.credentials).await;
            let logged_in = found.credential.is_some();
            let answered = self.answer(&base, &challenge, &scope, &found).await;
            problem = found.problem;
            match answered {
                Ok(Some(answered)) => {
                    response = http.send(ask(Some(&answered))?).await?;
                    if !is_denial(&response) {
                        self.tokens().put(key, answered.clone());
                    }
                    authorization = Some(answered);
                }
                Ok(None) => {}
                Err(denied) => return Err(explained(denied, logged_in, problem)),
            }
        }
        if response.status().is_success()
            || (skip > 0 && response.status() == StatusCode::RANGE_NOT_SATISFIABLE)
        {
            return Ok(response);
        }
        let logged_in = authorization.is_some_and(|authorization| authorization.logged_in);
        Err(explained(http.refusal(response, logged_in).await, logged_in, problem))
    }

    /// What answers a challenge; `None` if we have nothing that does.
    async fn answer(
        &self,
        base: &Url,
        challenge: &Challenge,
        scope: &str,
        found: &Found,
    ) -> Result<Option<Authorization>, Problem> {
        match (challenge, &found.credential) {
            (_, Some(Credential::RegistryToken(token))) => Ok(Some(Authorization::registry_token(token))),
            (Challenge::Basic, Some(Credential::Password { username, password })) => {
                Ok(Some(Authorization::basic(username, password)))
            }
            (Challenge::Basic, _) => Ok(None),
            (Challenge::Bearer { realm, service }, credential) => {
                let http = self.http().await?;
                let service = service.as_deref();
                token::request(http, base, realm, service, Some(scope), credential.as_ref()).await.map(Some)
            }
        }
    }

    /// Whether a registry accepts a credential, which is not stored here.
    ///
    /// # Errors
    /// [`RegistryError::Request`] with [`Problem::Denied`] if it does not, or another problem if that could not be
    /// found out; [`RegistryError::Registry`] if `registry` is no host.
    pub async fn check_login(&self, registry: &str, credential: &Credential) -> Result<(), RegistryError> {
        let host = registry_host(registry)?;
        let endpoint = Endpoint::registry(&host)?;
        let mut backoff = self.backoff(&endpoint);
        loop {
            let Err(problem) = self.try_login(&endpoint, credential).await else { return Ok(()) };
            if let Err(problem) = backoff.wait(problem).await {
                let what = "access with these credentials".to_owned();
                return Err(RegistryError::Request {
                    what,
                    registry: host,
                    problem: Box::new(problem),
                    mirrors: Vec::new(),
                });
            }
        }
    }

    async fn try_login(&self, endpoint: &Endpoint, credential: &Credential) -> Result<(), Problem> {
        let base = self.base(endpoint).await?;
        let url = base.join("v2/").expect("a valid address");
        let http = self.http().await?;
        let response = http.send(Ask::new(url.clone())).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            let success = response.status().is_success();
            // One that asks for nothing accepts everything.
            return if success { Ok(()) } else { Err(http.refusal(response, false).await) };
        }
        let challenge = challenge_of(&response, &url).ok_or_else(|| {
            Problem::Malformed("the registry asks for a kind of login that is not known here".to_owned())
        })?;
        let authorization = match (&challenge, credential) {
            (_, Credential::RegistryToken(token)) => Authorization::registry_token(token),
            (Challenge::Basic, Credential::Password { username, password }) => {
                Authorization::basic(username, password)
            }
            (Challenge::Basic, Credential::IdentityToken(_)) => {
                return Err(Problem::Malformed(
                    "the registry takes passwords only, and this is a token".to_owned(),
                ));
            }
            (Challenge::Bearer { realm, service }, credential) => {
                token::request(http, &base, realm, service.as_deref(), None, Some(credential)).await?
            }
        };
        let mut ask = Ask::new(url);
        ask.authorization = Some(authorization.header()?);
        let response = http.send(ask).await?;
        if response.status().is_success() { Ok(()) } else { Err(http.refusal(response, true).await) }
    }
}

/// The challenge of an answer, if the registry itself gave it. Where it redirects to has no say in where credentials
/// go.
fn challenge_of(response: &Response, asked: &Url) -> Option<Challenge> {
    (response.url().origin() == asked.origin()).then(|| challenge::best(response.headers())).flatten()
}

fn is_denial(response: &Response) -> bool {
    matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Adds to a denial what only the caller knows.
fn explained(problem: Problem, logged_in: bool, lookup: Option<CredentialError>) -> Problem {
    match problem {
        Problem::Denied { status, said, .. } => {
            Problem::Denied { status, logged_in, said, lookup: lookup.map(Box::new) }
        }
        other => other,
    }
}
