//! What the browser brings back from the provider: a query with a code or an error.

use zeroize::Zeroizing;

use super::OidcError;
use super::exchange::Refusal;
use super::settings::shown;

/// Bytes of such a query.
const MAX_QUERY: usize = 16 * 1024;

/// What the browser brings back.
#[derive(Default)]
pub(super) struct Back {
    pub state: String,
    code: Option<Zeroizing<String>>,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

impl Back {
    /// # Errors
    /// [`OidcError::Again`]
    pub(super) fn read(query: &str) -> Result<Self, OidcError> {
        let wrong =
            || OidcError::Again("what the browser brings back from the provider cannot be understood".into());
        if query.len() > MAX_QUERY {
            return Err(wrong());
        }
        let mut back = Self::default();
        let mut state = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = value.into_owned();
            let former = match &*name {
                "state" => state.replace(value).is_some(),
                "code" => back.code.replace(value.into()).is_some(),
                "iss" => back.iss.replace(value).is_some(),
                "error" => back.error.replace(value).is_some(),
                "error_description" => back.error_description.replace(value).is_some(),
                _ => false,
            };
            // twice: nobody can tell which of them counts
            if former {
                return Err(wrong());
            }
        }
        back.state = state.ok_or_else(wrong)?;
        Ok(back)
    }

    /// The code, if the answer is from this provider.
    ///
    /// # Errors
    /// [`OidcError::Again`], [`OidcError::Denied`]
    pub(super) fn code(self, issuer: &str, names_itself: bool) -> Result<Zeroizing<String>, OidcError> {
        match &self.iss {
            Some(iss) if iss != issuer => {
                return Err(OidcError::Again(format!(
                    "the answer is from another provider ({:?})",
                    shown(iss)
                )));
            }
            None if names_itself => {
                return Err(OidcError::Again(
                    "the answer does not say which provider it is from (iss)".into(),
                ));
            }
            _ => {}
        }
        if let Some(error) = self.error {
            return Err(OidcError::Denied(
                Refusal { error, error_description: self.error_description }.to_string(),
            ));
        }
        let code = self.code.filter(|code| !code.is_empty());
        code.ok_or_else(|| OidcError::Again("the answer holds neither a code nor an error".into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ISSUER: &str = "https://id.example";

    fn code(query: &str, names_itself: bool) -> Result<String, String> {
        let back = Back::read(query).map_err(|error| error.to_string())?;
        back.code(ISSUER, names_itself).map(|code| code.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_browser_brings_back() {
        assert_eq!(code("state=s&code=c%2B+d&session_state=x", false).unwrap(), "c+ d");
        assert_eq!(code("code=c&state=s&iss=https%3A%2F%2Fid.example", true).unwrap(), "c");
        assert_eq!(code("code=c&state=s&iss=https%3A%2F%2Fid.example", false).unwrap(), "c");
        let fails = |query: &str, names_itself, said: &str| {
            let why = code(query, names_itself).unwrap_err();
            assert!(why.contains(said), "{query}: {why}");
        };
        fails("code=c", false, "cannot be understood");
        fails("code=c&state=s&state=s", false, "cannot be understood");
        fails("code=c&code=d&state=s", false, "cannot be understood");
        fails(&format!("state=s&code={}", "c".repeat(MAX_QUERY)), false, "cannot be understood");
        fails("code=c&state=s", true, "which provider");
        fails("code=c&state=s&iss=https%3A%2F%2Fevil.example", false, "another provider");
        fails("error=access_denied&state=s&iss=https%3A%2F%2Fevil.example", false, "another provider");
        fails(
            "error=access_denied&error_description=no%0Away&state=s&code=c",
            false,
            "access_denied (no\\nway)",
        );
        fails("state=s", false, "neither a code");
        fails("state=s&code=", false, "neither a code");
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in "\\PC{0,100}") {
            let _ = code(&query, true);
        }
    }
}
