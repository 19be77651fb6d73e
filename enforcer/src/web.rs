//! The web gateway: a reverse proxy that ends what a web session has in browsers, in applications and on sockets.
//!
//! A process of its own without privileges. Its parts are adapters: they know neither each other nor the registry.

pub mod proxy;
