//! How the provider is spoken to, as it is configured.

use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::{Zeroize as _, Zeroizing};

use super::OidcError;
use super::fetch::Url;
use super::jws::Algorithm;
use crate::web::safe_file;

/// How the gateway shows the provider that it has the client's secret, at the token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretBy {
    /// HTTP Basic authentication: `client_secret_basic`.
    Basic,
    /// In the form: `client_secret_post`.
    Post,
}

/// What an administrator says of the provider.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The provider's name for itself: an https URL without query, exactly as it stands in its tokens.
    pub issuer: String,
    /// What the provider calls this gateway.
    pub client_id: String,
    /// A file with the client's secret in its only line: of the gateway's user with mode 0600, or of root with mode 0640 and
    /// the gateway's group.
    pub secret_file: PathBuf,
    /// `None`: whichever the provider says that it takes, Basic first.
    pub secret_by: Option<SecretBy>,
    /// What is asked for; `openid` is always among it.
    pub scopes: Vec<String>,
    /// The claim that has the user's name. `None`: `preferred_username`, and where that is missing `email`, if the
    /// provider has verified it.
    pub user_claim: Option<String>,
    /// The signatures that are accepted.
    pub algorithms: Vec<Algorithm>,
    /// A PEM file of the roots that the provider's certificate may lead to; `None`: the system's.
    pub roots: Option<PathBuf>,
    /// Whether a login that somebody has at the provider already is good enough. If not, each login asks for the
    /// password (or whatever the provider has) again, and the provider has to say that it did. **With it, who comes after
    /// somebody at the same browser is let in as that one** for as long as the provider's own session lasts.
    pub single_sign_on: bool,
}

impl Settings {
    /// With everything else as usual: the scopes `openid profile email`, all algorithms, the system's roots, a fresh
    /// login each time.
    pub fn new(
        issuer: impl Into<String>,
        client_id: impl Into<String>,
        secret_file: impl Into<PathBuf>,
    ) -> Self {
        Self {
            issuer: issuer.into(),
            client_id: client_id.into(),
            secret_file: secret_file.into(),
            secret_by: None,
            scopes: ["openid", "profile", "email"].map(str::to_owned).to_vec(),
            user_claim: None,
            algorithms: Algorithm::ALL.to_vec(),
            roots: None,
            single_sign_on: false,
        }
    }

    /// # Errors
    /// [`OidcError::Settings`]: what is wrong, and how it has to be.
    pub fn check(&self) -> Result<(), OidcError> {
        let wrong = |what: String| Err(OidcError::Settings(what));
        if let Err(why) = Url::parse(&self.issuer) {
            return wrong(format!("issuer: {why}"));
        }
        if self.issuer.contains('?') {
            return wrong(format!("issuer: {:?} has a query, which no issuer has", shown(&self.issuer)));
        }
        if !is_visible(&self.client_id) || self.client_id.len() > 512 {
            return wrong(
                "client-id: it is what the provider calls this gateway, 1 to 512 characters of ASCII".into(),
            );
        }
        let scope = |scope: &String| {
            (1..=64).contains(&scope.len())
                && scope.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
        };
        if let Some(odd) = self.scopes.iter().find(|one| !scope(one)) {
            return wrong(format!(
                "scopes: {:?} is none: take names like \"profile\", each for itself",
                shown(odd)
            ));
        }
        if self.scopes.len() > 32 {
            return wrong("scopes: 32 are enough".into());
        }
        if self.user_claim.as_ref().is_some_and(|claim| claim.is_empty() || claim.len() > 128) {
            return wrong("user-claim: it is a claim's name, like \"preferred_username\"".into());
        }
        if self.algorithms.is_empty() {
            return wrong("algorithms: name one of RS256, PS256, ES256, EdDSA, or leave the key out".into());
        }
        Ok(())
    }

    /// What is asked for, in one line, `openid` first.
    pub(super) fn scope(&self) -> String {
        let others = self.scopes.iter().filter(|scope| *scope != "openid");
        let all: Vec<&str> = std::iter::once("openid").chain(others.map(String::as_str)).collect();
        all.join(" ")
    }
}

/// The client's secret. Not to be printed; wiped when it is dropped.
#[derive(Clone)]
pub(super) struct Secret(Zeroizing<String>);

impl Secret {
    /// # Errors
    /// [`OidcError::Settings`]
    pub(super) fn read(path: &Path) -> Result<Self, OidcError> {
        let wrong =
            |what: &str| OidcError::Settings(format!("client-secret-file: {} {what}", path.display()));
        let contents = safe_file::read(path, safe_file::GROUP_READS)
            .map_err(|error| OidcError::Settings(format!("client-secret-file: {error}")))?;
        let mut bytes = Zeroizing::new(contents.bytes);
        while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            bytes.pop();
        }
        if bytes.is_empty() {
            return Err(wrong("is empty: put the secret into it that the provider gave for this client"));
        }
        if bytes.len() > 1024 || !bytes.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(wrong("is no secret: one line, at most 1024 characters of ASCII"));
        }
        let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
            error.into_bytes().zeroize();
            wrong("is no text")
        })?;
        Ok(Self(Zeroizing::new(text)))
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// As much of a text from outside as a log takes, without what steers a terminal.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn settings() -> Settings {
        Settings::new("https://id.example", "gateway", "/nowhere")
    }

    #[test]
    fn what_is_wrong_is_told_by_its_key() {
        settings().check().unwrap();
        let told = |change: &dyn Fn(&mut Settings), key: &str| {
            let mut settings = settings();
            change(&mut settings);
            let said = settings.check().unwrap_err().to_string();
            assert!(said.contains(key), "{said}");
        };
        told(&|s| s.issuer = "http://id.example".into(), "issuer: ");
        told(&|s| s.issuer = "https://id.example/?a=b".into(), "issuer: ");
        told(&|s| s.issuer = "https://u:p@id.example/".into(), "issuer: ");
        told(&|s| s.issuer = "id.example".into(), "issuer: ");
        told(&|s| s.client_id.clear(), "client-id: ");
        told(&|s| s.client_id = "ä".into(), "client-id: ");
        told(&|s| s.scopes = vec!["openid profile".into()], "scopes: ");
        told(&|s| s.scopes = vec!["x".into(); 33], "scopes: ");
        told(&|s| s.user_claim = Some(String::new()), "user-claim: ");
        told(&|s| s.algorithms.clear(), "algorithms: ");
    }

    #[test]
    fn openid_is_asked_for_once_and_first() {
        let scope = |scopes: &[&str]| {
            Settings { scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(), ..settings() }.scope()
        };
        assert_eq!(settings().scope(), "openid profile email");
        assert_eq!(scope(&["groups", "openid"]), "openid groups");
        assert_eq!(scope(&[]), "openid");
    }

    #[test]
    fn a_secret_is_one_line_of_a_file_that_nobody_else_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let put = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        put("hunter 2\n", 0o600);
        let secret = Secret::read(&path).unwrap();
        assert_eq!(secret.text(), "hunter 2");
        assert!(!format!("{secret:?}").contains("hunter"));
        put("hunter2", 0o640);
        assert_eq!(Secret::read(&path).unwrap().text(), "hunter2", "a group may read it");
        put("hunter2", 0o644);
        let said = Secret::read(&path).unwrap_err().to_string();
        assert!(said.contains("chmod 640") && !said.contains("hunter"), "{said}");
        for text in ["", "\n", "two\nlines\n", "ümlaut", &"x".repeat(1025)] {
            put(text, 0o600);
            let said = Secret::read(&path).unwrap_err().to_string();
            assert!(said.starts_with("client-secret-file: ") && !said.contains("lines"), "{said}");
        }
        assert!(
            Secret::read(&folder.path().join("none")).unwrap_err().to_string().contains("does not exist")
        );
    }
}
