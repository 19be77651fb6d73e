//! The access gateway: a reverse proxy that seals the cookies of the applications behind it under its own session, so
//! that they are worth nothing once that session is over.
//!
//! Its parts know neither each other's insides nor the daemon; but for `link`, the client of the daemon's `Web` service.

pub mod attempts;
pub mod cookie;
pub mod learned;
pub mod link;
pub mod safe_file;
pub mod seal;
pub mod sealing;
pub mod users;
