//! What a provider says of itself (OpenID Connect Discovery 1.0), as far as it is needed here.

use serde::Deserialize;

use super::fetch::Url;
use super::jws::Algorithm;
use super::settings::{SecretBy, Settings, shown};

/// The provider's endpoints and ways.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub authorization: Url,
    pub token: Url,
    pub keys: Url,
    pub userinfo: Option<Url>,
    pub end_session: Option<Url>,
    pub secret_by: SecretBy,
    /// Whether each answer says who it is from (RFC 9207).
    pub names_itself: bool,
    /// Whether it tells of ends by itself, and whether it names the session then.
    pub back_channel: bool,
    pub back_channel_sid: bool,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
    response_types_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
    id_token_signing_alg_values_supported: Option<Vec<String>>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
    #[serde(default)]
    backchannel_logout_supported: bool,
    #[serde(default)]
    backchannel_logout_session_supported: bool,
}

/// Where it is told: below the issuer.
pub(super) fn place(issuer: &str) -> Result<Url, String> {
    Url::parse(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')))
}

impl Metadata {
    /// # Errors
    /// A sentence: what is missing, or does not fit the settings.
    pub(super) fn parse(text: &[u8], settings: &Settings) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(text)
            .map_err(|error| format!("it is no provider's description: {}", shown(&error.to_string())))?;
        if document.issuer != settings.issuer {
            return Err(format!(
                "the provider calls itself {:?}: `issuer` has to be exactly that",
                shown(&document.issuer)
            ));
        }
        let lacks = |list: &Option<Vec<String>>, wanted: &str| {
            list.as_ref().is_some_and(|list| !list.iter().any(|one| one == wanted))
        };
        if lacks(&document.response_types_supported, "code") {
            return Err("the provider does not offer the code flow (response_types_supported)".into());
        }
        // not every provider that has it says so
        if lacks(&document.code_challenge_methods_supported, "S256") {
            return Err(
                "the provider does not offer PKCE with S256 (code_challenge_methods_supported)".into()
            );
        }
        if settings
            .algorithms
            .iter()
            .all(|algorithm| lacks(&document.id_token_signing_alg_values_supported, algorithm.name()))
        {
            let accepted: Vec<&str> = settings.algorithms.iter().map(|algorithm| algorithm.name()).collect();
            return Err(format!(
                "the provider signs by none of {}, which alone are accepted (id_token_signing_alg_values_supported)",
                accepted.join(", ")
            ));
        }
        let secret_by = match (settings.secret_by, &document.token_endpoint_auth_methods_supported) {
            (Some(configured), _) => configured,
            (None, methods) if !lacks(methods, "client_secret_basic") => SecretBy::Basic,
            (None, methods) if !lacks(methods, "client_secret_post") => SecretBy::Post,
            _ => {
                return Err(
                    "the provider takes no client secret (token_endpoint_auth_methods_supported)".into()
                );
            }
        };
        let url = |text: &str, name: &str| Url::parse(text).map_err(|why| format!("{name}: {why}"));
        let optional = |text: Option<&String>, name: &str| text.map(|text| url(text, name)).transpose();
        Ok(Self {
            authorization: url(&document.authorization_endpoint, "authorization_endpoint")?,
            token: url(&document.token_endpoint, "token_endpoint")?,
            keys: url(&document.jwks_uri, "jwks_uri")?,
            userinfo: optional(document.userinfo_endpoint.as_ref(), "userinfo_endpoint")?,
            end_session: optional(document.end_session_endpoint.as_ref(), "end_session_endpoint")?,
            secret_by,
            names_itself: document.authorization_response_iss_parameter_supported,
            back_channel: document.backchannel_logout_supported,
            back_channel_sid: document.backchannel_logout_session_supported,
        })
    }
}

/// What [`Algorithm`]s a configuration names, read.
///
/// # Errors
/// A sentence that names those that there are.
pub fn algorithms<'n>(names: impl IntoIterator<Item = &'n str>) -> Result<Vec<Algorithm>, String> {
    names.into_iter().map(str::parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings() -> Settings {
        Settings::new("https://id.example/realm", "gateway", "/nowhere")
    }

    fn document() -> Value {
        json!({
            "issuer": "https://id.example/realm",
            "authorization_endpoint": "https://id.example/auth",
            "token_endpoint": "https://api.example/token",
            "jwks_uri": "https://id.example/jwks",
        })
    }

    fn parse(document: &Value, settings: &Settings) -> Result<Metadata, String> {
        Metadata::parse(document.to_string().as_bytes(), settings)
    }

    #[test]
    fn where_it_is_told() {
        for (issuer, wanted) in [
            ("https://id.example", "https://id.example/.well-known/openid-configuration"),
            ("https://id.example/", "https://id.example/.well-known/openid-configuration"),
            ("https://id.example/a/b", "https://id.example/a/b/.well-known/openid-configuration"),
        ] {
            assert_eq!(place(issuer).unwrap().as_str(), wanted);
        }
    }

    #[test]
    fn the_least_that_a_provider_says() {
        let metadata = parse(&document(), &settings()).unwrap();
        assert_eq!(metadata.token.as_str(), "https://api.example/token");
        assert_eq!(metadata.secret_by, SecretBy::Basic);
        assert!(!metadata.names_itself && !metadata.back_channel && metadata.userinfo.is_none());
    }

    #[test]
    fn how_the_secret_is_shown() {
        for (methods, wanted) in [
            (json!(["client_secret_post", "client_secret_basic"]), Some(SecretBy::Basic)),
            (json!(["private_key_jwt", "client_secret_post"]), Some(SecretBy::Post)),
            (json!(["private_key_jwt", "none"]), None),
        ] {
            let mut document = document();
            document["token_endpoint_auth_methods_supported"] = methods;
            assert_eq!(parse(&document, &settings()).ok().map(|metadata| metadata.secret_by), wanted);
            let settings = Settings { secret_by: Some(SecretBy::Post), ..settings() };
            assert_eq!(parse(&document, &settings).unwrap().secret_by, SecretBy::Post, "as configured");
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        for (key, value, said) in [
            ("issuer", json!("https://id.example/realm/"), "`issuer` has to be exactly that"),
            ("issuer", json!("https://evil.example"), "`issuer` has to be exactly that"),
            ("authorization_endpoint", json!("http://id.example/auth"), "authorization_endpoint: "),
            ("token_endpoint", json!("token"), "token_endpoint: "),
            ("jwks_uri", json!("file:///etc/passwd"), "jwks_uri: "),
            ("userinfo_endpoint", json!("http://id.example/me"), "userinfo_endpoint: "),
            ("end_session_endpoint", json!("javascript:alert(1)"), "end_session_endpoint: "),
            ("response_types_supported", json!(["id_token"]), "code flow"),
            ("code_challenge_methods_supported", json!(["plain"]), "PKCE"),
            ("id_token_signing_alg_values_supported", json!(["HS256", "none"]), "RS256, PS256"),
            ("token_endpoint", json!(null), "no provider's description"),
        ] {
            let mut document = document();
            document[key] = value;
            let why = parse(&document, &settings()).unwrap_err();
            assert!(why.contains(said), "{key}: {why}");
        }
        let only = Settings { algorithms: vec![Algorithm::EdDsa], ..settings() };
        let mut document = document();
        document["id_token_signing_alg_values_supported"] = json!(["RS256"]);
        assert!(parse(&document, &only).unwrap_err().contains("none of EdDSA"));
        parse(&document, &settings()).unwrap();
    }

    #[test]
    fn algorithms_by_their_names() {
        assert_eq!(algorithms(["ES256", "RS256"]).unwrap(), [Algorithm::Es256, Algorithm::Rs256]);
        assert!(algorithms(["ES256", "HS256"]).unwrap_err().contains("HS256"));
    }
}
