//! The web gateway: the process that stands before the web applications.

pub mod link;
