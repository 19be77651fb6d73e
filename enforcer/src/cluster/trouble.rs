//! What goes wrong between here and etcd, in three kinds: by what is known of the question afterwards.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use etcd_client::Error;
use tonic::{Code, Status};

use super::record::short;

/// Why a question was not answered as it should have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub fate: Fate,
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// etcd has said no; the connection is as good as before.
    Refused,
    /// Nothing was done, and the connection is of no use.
    NotDone,
    /// It was done or not, and the connection is of no use.
    NotKnown,
}

impl Trouble {
    pub fn broken(why: impl Into<String>) -> Self {
        Self { fate: Fate::NotKnown, why: why.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let fate = match &error {
            Error::GRpcStatus(status) => fate(status),
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => Fate::NotDone,
            _ => Fate::NotKnown,
        };
        Self { fate, why: explain(&error) }
    }
}

fn fate(status: &Status) -> Fate {
    match status.code() {
        // the roles were changed since the token was given: a new token helps
        Code::InvalidArgument if status.message().contains("auth store") => Fate::NotDone,
        Code::Unauthenticated => Fate::NotDone,
        Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::NotFound
        | Code::Unimplemented => Fate::Refused,
        _ => Fate::NotKnown,
    }
}

/// What was asked for is compacted: history that nobody has any more.
pub(super) fn is_compacted(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() == Code::OutOfRange && status.message().contains("compacted"))
}

/// An answer that is longer than what is taken at once (tonic says so, not etcd).
pub(super) fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() == Code::OutOfRange && status.message().contains("too large"))
}

/// With what lies below it: "transport error" alone says nothing.
fn explain(error: &Error) -> String {
    let (mut text, mut source) = match error {
        Error::TransportError(error) => (error.to_string(), error.source()),
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        other => (other.to_string(), None),
    };
    while let Some(below) = source {
        let said = below.to_string();
        if !text.contains(&said) {
            text = if text.is_empty() { said } else { format!("{text}: {said}") };
        }
        source = below.source();
    }
    if text.is_empty() {
        text = error.to_string();
    }
    short(&text)
}

/// The answer, or that there was none in time.
pub(super) async fn within<T>(
    time: Duration,
    question: impl Future<Output = Result<T, Error>>,
) -> Result<T, Trouble> {
    raw_within(time, question).await?.map_err(Trouble::from)
}

/// As [`within`], with the error as it is.
pub(super) async fn raw_within<T>(
    time: Duration,
    question: impl Future<Output = Result<T, Error>>,
) -> Result<Result<T, Error>, Trouble> {
    tokio::time::timeout(time, question)
        .await
        .map_err(|_| Trouble::broken(format!("no answer within {time:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_after_an_error_depends_on_what_etcd_said() {
        let of = |code, text: &str| Trouble::from(Error::GRpcStatus(Status::new(code, text))).fate;
        assert_eq!(of(Code::PermissionDenied, "etcdserver: permission denied"), Fate::Refused);
        assert_eq!(of(Code::InvalidArgument, "etcdserver: request is too large"), Fate::Refused);
        assert_eq!(of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"), Fate::Refused);
        assert_eq!(of(Code::InvalidArgument, "etcdserver: revision of auth store is old"), Fate::NotDone);
        assert_eq!(of(Code::Unauthenticated, "etcdserver: invalid auth token"), Fate::NotDone);
        // it may have been proposed before the time was over
        assert_eq!(of(Code::Unavailable, "etcdserver: request timed out"), Fate::NotKnown);
        assert_eq!(of(Code::Unavailable, "etcdserver: leader changed"), Fate::NotKnown);
        assert_eq!(of(Code::Unknown, "transport error"), Fate::NotKnown);
        assert_eq!(of(Code::Cancelled, ""), Fate::NotKnown);
    }

    #[test]
    fn what_is_told_is_bounded_and_without_control_characters() {
        let status = Status::new(Code::Internal, format!("a\u{1b}[31m{}", "x".repeat(10_000)));
        let why = Trouble::from(Error::GRpcStatus(status)).why;
        assert!(why.len() < 400 && !why.chars().any(char::is_control), "{why:?}");
    }
}
