//! The web gateway: a reverse proxy that seals the cookies of the applications behind it under its own session, and that
//! ends what a session has in browsers, in applications and on sockets.
//!
//! A process of its own without privileges. Its parts are adapters: they know neither each other's insides nor the
//! registry; `link` is the client of the daemon's `Web` service. `gateway` puts them together.

pub mod attempts;
pub mod cookie;
pub mod gateway;
pub mod learned;
pub mod line_file;
pub mod link;
pub mod oidc;
pub mod proxy;
pub mod safe_file;
pub mod seal;
pub mod sealing;
pub mod users;
