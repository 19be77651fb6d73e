//! The user's name: which claim has it, and whether it can be one here.

use serde_json::{Map, Value};

use super::settings::shown;
use crate::web::users::check_name;

/// What has the name unless something else is configured.
const USUAL: &str = "preferred_username";

/// The claim that has the name in the first place.
pub(super) fn claim(configured: Option<&str>) -> &str {
    configured.unwrap_or(USUAL)
}

/// The name of whom these claims are of.
///
/// # Errors
/// A sentence: no claim has one, or it can be none here.
pub(super) fn name(configured: Option<&str>, claims: &Map<String, Value>) -> Result<String, String> {
    let wanted = claim(configured);
    let is_verified = || claims.get("email_verified") == Some(&Value::Bool(true));
    let value = match claims.get(wanted).filter(|value| !value.is_null()) {
        Some(_) if wanted == "email" && !is_verified() => {
            return Err("the provider has not verified the user's address (email_verified)".into());
        }
        Some(value) => value,
        None if configured.is_some() => {
            return Err(format!("there is no claim {wanted:?}: ask for its scope"));
        }
        None => claims.get("email").filter(|_| is_verified()).ok_or_else(|| {
            format!(
                "there is neither a claim {wanted:?} nor a verified address (email): ask for their scopes"
            )
        })?,
    };
    let name = value
        .as_str()
        .ok_or_else(|| format!("what the provider gives as the user's name is no text: {wanted:?}"))?;
    check_name(name).map_err(|error| shown(&error.to_string()))?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(configured: Option<&str>, claims: Value) -> Result<String, String> {
        name(configured, claims.as_object().unwrap())
    }

    #[test]
    fn the_usual_claims() {
        let both = json!({"preferred_username": "alice", "email": "a@example", "email_verified": true});
        assert_eq!(of(None, both.clone()).unwrap(), "alice");
        assert_eq!(of(Some("email"), both.clone()).unwrap(), "a@example");
        assert!(of(Some("upn"), both).unwrap_err().contains("upn"));
        let email = json!({"email": "a@example", "email_verified": true, "preferred_username": null});
        assert_eq!(of(None, email).unwrap(), "a@example");
    }

    /// R3: nobody becomes somebody else with an address that he has only typed in.
    #[test]
    fn r3_an_address_that_was_not_verified_is_no_name() {
        for verified in [json!(false), json!("true"), json!(1), json!(null)] {
            let claims = json!({"email": "root@example", "email_verified": verified});
            assert!(of(None, claims.clone()).is_err() && of(Some("email"), claims).is_err());
        }
        assert!(of(None, json!({"email": "root@example"})).is_err());
        assert!(of(None, json!({})).is_err());
    }

    #[test]
    fn what_can_be_no_name_here() {
        for odd in [
            json!(""),
            json!("a\nb"),
            json!("a\0"),
            json!(" a"),
            json!("x".repeat(257)),
            json!(7),
            json!(["a"]),
        ] {
            let said = of(None, json!({"preferred_username": odd, "email": "a@b", "email_verified": true}));
            assert!(said.is_err(), "{said:?}: it is not looked for elsewhere");
            assert!(!said.unwrap_err().contains('\n'));
        }
        assert_eq!(of(None, json!({"preferred_username": "x".repeat(256)})).unwrap().len(), 256);
    }
}
