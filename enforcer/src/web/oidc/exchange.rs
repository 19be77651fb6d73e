//! What is asked of the provider for one login: the tokens for a code, and where the ID token does not have it the user's
//! name.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use hyper::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::{Zeroize as _, Zeroizing};

use super::OidcError;
use super::fetch::{Fetch, Url};
use super::metadata::Metadata;
use super::pending::Pending;
use super::provider::good;
use super::settings::{Secret, SecretBy, shown};

/// What the token endpoint gives.
#[derive(Deserialize)]
pub(super) struct Tokens {
    pub id_token: String,
    access_token: Option<String>,
    token_type: Option<String>,
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.id_token.zeroize();
        self.access_token.zeroize();
    }
}

/// The tokens for a code.
///
/// # Errors
/// [`OidcError::Denied`]: it is none, or not any more. [`OidcError::Provider`].
pub(super) async fn redeem(
    fetch: &Fetch,
    metadata: &Metadata,
    (client_id, secret): (&str, &Secret),
    code: &str,
    pending: &Pending,
) -> Result<Tokens, OidcError> {
    let url = &metadata.token;
    // in a block: a serializer stays on its thread, and what asks moves
    let (body, authorization) = {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs([
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &pending.redirect),
            ("code_verifier", &pending.verifier),
        ]);
        let authorization = match metadata.secret_by {
            SecretBy::Basic => Some(basic(client_id, secret)?),
            SecretBy::Post => {
                form.extend_pairs([("client_id", client_id), ("client_secret", secret.text())]);
                None
            }
        };
        (form.finish(), authorization)
    };
    let answer = fetch.post_form(url, authorization, body).await?;
    if let Some(error) = Refusal::read(answer.status, &answer.body) {
        return Err(match error.error.as_str() {
            "invalid_client" | "unauthorized_client" => OidcError::Provider(format!(
                "{} does not take this gateway's client-id and secret: {error}",
                url.as_str()
            )),
            _ => OidcError::Denied(error.to_string()),
        });
    }
    let answer = good(url, answer)?;
    // what cannot be read may still hold secrets: it is not shown
    serde_json::from_slice(&answer.body)
        .map_err(|_| OidcError::Provider(format!("{}: there is no ID token in its answer", url.as_str())))
}

/// What the provider tells of whom these tokens are of, beside the ID token.
///
/// `sub`: of the ID token.
///
/// # Errors
/// [`OidcError::Provider`]
pub(super) async fn more(
    fetch: &Fetch,
    url: &Url,
    tokens: &Tokens,
    sub: &str,
) -> Result<Map<String, Value>, OidcError> {
    let wrong = |why: &str| OidcError::Provider(format!("{}: {why}", url.as_str()));
    let access = tokens.access_token.as_ref().filter(|_| tokens.is_bearer());
    let access = access.ok_or_else(|| wrong("no access token was given to ask for the user's name with"))?;
    let bearer = secret_header(&Zeroizing::new(format!("Bearer {access}")))?;
    let answer = good(url, fetch.get(url, Some(bearer)).await?)?;
    let claims: Map<String, Value> = serde_json::from_slice(&answer.body)
        .map_err(|_| wrong("its answer is no JSON object (signed answers are not taken)"))?;
    if claims.get("sub").and_then(Value::as_str) != Some(sub) {
        return Err(wrong("it tells of somebody else (sub)"));
    }
    Ok(claims)
}

impl Tokens {
    fn is_bearer(&self) -> bool {
        self.token_type.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"))
    }
}

/// Why a code is not taken.
#[derive(Deserialize)]
pub(super) struct Refusal {
    pub error: String,
    pub error_description: Option<String>,
}

impl Refusal {
    fn read(status: StatusCode, body: &[u8]) -> Option<Self> {
        if !status.is_client_error() { None } else { serde_json::from_slice(body).ok() }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&shown(&self.error))?;
        self.error_description.as_ref().map_or(Ok(()), |text| write!(f, " ({})", shown(text)))
    }
}

/// `Authorization` with the client's name and secret (RFC 6749, 2.3.1).
fn basic(client: &str, secret: &Secret) -> Result<HeaderValue, OidcError> {
    let encoded =
        |text: &str| Zeroizing::new(form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>());
    let pair = Zeroizing::new(format!("{}:{}", *encoded(client), *encoded(secret.text())));
    secret_header(&format!("Basic {}", *Zeroizing::new(STANDARD.encode(pair.as_bytes()))))
}

/// A field's value that is not printed.
fn secret_header(text: &str) -> Result<HeaderValue, OidcError> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| OidcError::Provider("it gives a token that fits into no field".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_encoded_as_the_standard_wants_it_and_not_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "s:e c+%\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let value = basic("a b", &Secret::read(&path).unwrap()).unwrap();
        let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        assert_eq!(STANDARD.decode(text).unwrap(), b"a+b:s%3Ae+c%2B%25");
        assert!(!format!("{value:?}").contains("YSti"));
    }
}
