//! Why somebody does not get in: a sentence for the log, and a plain one for the browser.

use hyper::http::StatusCode;

use super::token::TokenError;
use crate::web::line_file::LineError;
use crate::web::seal::SealError;

/// Why a login cannot be begun or finished, or an end not be taken. What is displayed is for the log; it holds no secret,
/// and nothing that steers a terminal.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The configuration is wrong.
    #[error("{0}")]
    Settings(String),
    /// What was asked for cannot be gone on with after a login.
    #[error("a login cannot be begun: {0}")]
    Begin(String),
    /// The way back is not of a login that this browser has begun here, or it took too long.
    #[error("a login cannot be finished: {0}")]
    Again(String),
    /// The provider has sent the user back without a login.
    #[error("the identity provider has refused a login: {0}")]
    Denied(String),
    /// It cannot be reached, or does not do what it has to.
    #[error("the identity provider: {0}")]
    Provider(String),
    /// A token is not to be believed.
    #[error("the identity provider's {what}: {why}")]
    Token { what: &'static str, why: TokenError },
    /// The user has no name that counts here.
    #[error("the identity provider's user cannot be let in: {0}")]
    Name(String),
    /// The provider has ended it, before it had begun here.
    #[error("the identity provider has ended this login already")]
    Ended,
    /// Too many at once.
    #[error("{0}")]
    Busy(String),
    /// Whose a session is cannot be kept.
    #[error(transparent)]
    Sessions(#[from] LineError),
    #[error("{0}")]
    System(String),
}

impl From<SealError> for OidcError {
    fn from(error: SealError) -> Self {
        Self::System(error.to_string())
    }
}

impl OidcError {
    /// What the browser is answered.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Begin(_) | Self::Again(_) => StatusCode::BAD_REQUEST,
            Self::Denied(_) | Self::Name(_) | Self::Ended => StatusCode::FORBIDDEN,
            Self::Token { .. } => StatusCode::BAD_GATEWAY,
            Self::Provider(_) | Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Settings(_) | Self::Sessions(_) | Self::System(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What the user is told.
    pub fn plain(&self) -> &'static str {
        match self {
            Self::Begin(_) => {
                "The address that you asked for is too long to go on with after a login. Ask for its first page."
            }
            Self::Again(_) => {
                "This login cannot be finished: it was begun too long ago, or in another window. Begin it again."
            }
            Self::Denied(_) => "The login was not completed. Begin it again.",
            Self::Provider(_) => {
                "The service that checks logins cannot be used at the moment. Try again in a few minutes."
            }
            Self::Token { .. } => {
                "The answer of the service that checks logins cannot be trusted. Begin the login again, and tell your \
                 administrator if it does not help."
            }
            Self::Name(_) => "Your account has no name that can be used here. Tell your administrator.",
            Self::Ended => "You have been logged out meanwhile. Begin the login again.",
            Self::Busy(_) => "Too many people are logging in at the moment. Try again in a minute.",
            Self::Settings(_) | Self::Sessions(_) | Self::System(_) => {
                "Nobody can log in at the moment. Tell your administrator."
            }
        }
    }

    /// The part of a provider's error that does not say again whose it is.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Provider(why) => why.clone(),
            other => other.to_string(),
        }
    }
}
