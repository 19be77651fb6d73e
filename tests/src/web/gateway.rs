//! `enforcer gateway` before a real application.

use crate::enforcer::{Config, quoted};
use crate::portal::{ONE, Portal};
use crate::process::{BOUND, eventually};
use crate::web::browser::Person;
use crate::web::papers::Papers;
use crate::web::script::{Ending, Front, sign_in};

/// A gateway with that application alone behind it, below [`APP`](super::APP). `idle`: seconds after which an unused
/// session ends. The application is started later, in the lab that this makes.
pub fn before(name: &str, origin: &str, readable: &[&str], idle: u32) -> Portal {
    let idle = quoted(&format!("{idle}s"));
    Portal::with(name, |config| self::origin(config, origin, readable).set("gateway", "idle-timeout", &idle))
}

/// With that application alone behind the gateway.
pub fn origin(config: Config, origin: &str, readable: &[&str]) -> Config {
    let origins = format!("[{{ host = {ONE:?}, to = {origin:?}, readable = {readable:?} }}]");
    config.set("gateway", "origins", &origins)
}

/// Its certificate.
pub fn papers(portal: &Portal) -> Papers {
    Papers::of(&portal.scene.lab.work())
}

impl Front for Portal {
    fn host(&self) -> &str {
        ONE
    }

    fn name(&self) -> &'static str {
        "enforcer"
    }

    fn sign_in(&self, person: &Person<'_>, user: &str) {
        sign_in(person, user, crate::portal::PASSWORD);
    }

    fn end(&self, person: &Person<'_>, user: &str, ending: Ending) {
        assert_eq!(self.sessions(user), 1, "{user} has a session at the gateway");
        match ending {
            Ending::Logout => {
                person.goto(&format!("https://{ONE}/AGLogout"));
                assert_eq!(self.sessions(user), 0, "the logout was answered");
            }
            Ending::Idle => eventually(&format!("{user} was idle for too long"), BOUND * 2, || {
                (self.sessions(user) == 0).then_some(())
            }),
            Ending::Administrator => {
                self.scene.enforcer.revoke(user);
            }
        }
    }
}
