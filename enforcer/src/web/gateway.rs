//! `enforcer gateway`: the parts put together. A reverse proxy that lets nobody through without a session, and whose
//! sessions take the cookies of the applications behind it along when they end.
//!
//! ```text
//! request -> proxy -> guard: whose is it?   (link: memory, or the daemon)
//!                       nobody's: login page, or 401      login, handover
//!                       somebody's: cookies are opened    sealing, held
//!         -> origin -> guard: cookies are sealed          what is new is on the disk first
//! an end  -> link: out of memory -> held: forgotten -> proxy: requests and sockets -> acknowledged
//! ```
//!
//! One thread holds the link to the daemon and hears signals; the proxy has a thread for each processor.

mod codes;
mod cookies;
mod guard;
mod handover;
mod held;
mod login;
mod logout;
mod openid;
mod page;
mod passwords;
mod privileges;
mod process;
mod provider_ends;
mod rules;
mod sessions;
mod wish;

pub use process::{become_its_user, run};

/// The gateway's files below its `state` folder.
pub mod files {
    use std::path::{Path, PathBuf};

    /// The master keys.
    pub fn keys(state: &Path) -> PathBuf {
        state.join("master.keys")
    }

    /// What sealing has learned.
    pub fn learned(state: &Path) -> PathBuf {
        state.join("learned")
    }

    /// Whose the sessions are at the identity provider.
    pub fn oidc(state: &Path) -> PathBuf {
        state.join("oidc-sessions")
    }
}
