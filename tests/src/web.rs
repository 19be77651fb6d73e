//! The web side of the lab: real applications on the LAN host, an access gateway before them, and a real browser.
//!
//! ```text
//! Chromium [client ns] ── [gateway ns: nginx, or enforcer gateway] ── Django, Jupyter [LAN host ns]
//! ```
//!
//! What it runs is installed by `cargo xtask setup` below `target/lab/web`.

pub mod apps;
pub mod browser;
pub mod gateway;
pub mod papers;
pub mod plain;
pub mod script;
pub mod terminal;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::era::target_folder;
use crate::lab::{Lab, WAN};
use crate::portal::ONE;

pub use apps::{Django, Jupyter};
pub use browser::{Browser, Person};
pub use papers::Papers;
pub use plain::Plain;
pub use script::{Ending, Front};
pub use terminal::Terminal;

/// Where nginx listens, beside the gateway.
pub const PLAIN_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 81);
/// As browsers ask for an application: behind the gateway, and behind nginx.
pub const APP: &str = ONE;
pub const BEHIND_NGINX: &str = "plain.example.com";

/// Gives nginx its address.
pub fn plain_address(lab: &Lab) {
    lab.gateway.ip(&format!("addr add {PLAIN_V4}/24 dev {WAN}\n"));
}

/// A program or folder that setup installs.
#[track_caller]
fn installed(path: &str) -> PathBuf {
    let path = target_folder().join("lab/web").join(path);
    assert!(path.exists(), "{} is missing: cargo xtask setup", path.display());
    path.canonicalize().expect("a path")
}

/// A program of the Python environment.
#[track_caller]
fn python(program: &str) -> String {
    // not canonical: a link in the environment's own folder says which environment it is
    let path = installed("python").join("bin").join(program);
    assert!(path.exists(), "{} is missing: cargo xtask setup", path.display());
    path.display().to_string()
}

/// The files of `tests/browser`.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("browser")
}
