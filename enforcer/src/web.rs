//! The web gateway: a reverse proxy that seals the cookies of the applications behind it under its own session, and that
//! ends what a session has in browsers, in applications and on sockets.
//!
//! A process of its own without privileges. Its parts are adapters: they know neither each other's insides nor the
//! registry; `link` is the client of the daemon's `Web` service.

pub mod attempts;
pub mod cookie;
pub mod learned;
pub mod link;
pub mod oidc;
pub mod proxy;
pub mod safe_file;
pub mod seal;
pub mod sealing;
pub mod users;
