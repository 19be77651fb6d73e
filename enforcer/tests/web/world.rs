//! A session at a gateway, as far as cookies go: for every test of sealing, and for the fuzz target.
#![allow(dead_code, reason = "not each of them needs all of it")]

use std::time::{Duration, Instant, UNIX_EPOCH};

use enforcer::web::cookie::Folded;
use enforcer::web::learned::{Entry, Learned};
use enforcer::web::seal::{Group, Sealer, SealingSecret};
use enforcer::web::sealing::{Deletion, Incoming, Now, Outgoing, Policy, Recent, Sealing, Why};

/// The groups `app`, whose policy is this one, and `other`. The browser asks `app.example` for `/app/page`, over TLS.
pub struct World {
    pub sealer: Sealer,
    pub recent: Recent,
    pub policy: Policy,
    pub groups: Vec<Group>,
    pub learned: Learned,
    pub host: &'static str,
    pub path: &'static str,
    pub now: Now,
}

pub fn group(name: &str) -> Group {
    Group::new(name).unwrap()
}

impl World {
    /// With the gateway's own cookie, and one name on the allowlist.
    pub fn new() -> Self {
        let mut policy = Policy::new(group("app")).with_own(b"__Host-enforcer");
        policy.readable.insert(b"csrftoken".to_vec());
        Self { policy, ..Self::plain() }
    }

    /// With neither: every cookie is like every other.
    pub fn plain() -> Self {
        Self {
            sealer: Sealer::new(&SealingSecret::new().unwrap()).unwrap(),
            recent: Recent::default(),
            policy: Policy::new(group("app")),
            groups: vec![group("app"), group("other")],
            learned: Learned::default(),
            host: "app.example",
            path: "/app/page?x=/y",
            now: Now {
                // some day in 2027, so that the same cookies are over in every run
                wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
                steady: Instant::now(),
            },
        }
    }

    pub fn sealing(&self) -> Sealing<'_> {
        Sealing {
            sealer: &self.sealer,
            recent: &self.recent,
            policy: &self.policy,
            groups: &self.groups,
            learned: &self.learned,
            host: self.host.as_bytes(),
            path: self.path.as_bytes(),
            secure: true,
        }
    }

    /// Another session in the same browser.
    pub fn another_session(&mut self) {
        self.sealer = Sealer::new(&SealingSecret::new().unwrap()).unwrap();
        self.recent = Recent::default();
    }

    /// What was just now is so no more.
    pub fn later(&mut self) {
        self.now.steady += Recent::WINDOW;
    }

    pub fn learn(&mut self, news: &[Entry]) {
        news.iter().for_each(|entry| self.learned.learn(entry.clone()));
    }

    /// This name was sealed for the group of the policy, some time ago.
    pub fn learn_sealed(&mut self, name: &[u8]) {
        let group = self.policy.group.clone();
        self.learned.learn(Entry::Sealed { group, name: Folded::of(name) });
    }

    pub fn seal(&self, name: &[u8], value: &[u8]) -> Vec<u8> {
        self.sealer.seal(&self.policy.group, name, value).unwrap()
    }

    pub fn outgoing<F: AsRef<[u8]>>(&mut self, fields: &[F], deletions: &[Deletion]) -> Outgoing {
        let sealed = self.sealing().outgoing(fields, deletions, self.now).unwrap();
        self.learn(&sealed.news);
        sealed
    }

    /// The application sets a cookie: `name=value` as the browser keeps it.
    pub fn set(&mut self, field: &str) -> String {
        let sealed = self.outgoing(&[field], &[]);
        let text = String::from_utf8(sealed.fields[0].clone()).unwrap();
        text.split(';').next().unwrap().to_owned()
    }

    pub fn incoming<F: AsRef<[u8]>>(&self, fields: &[F]) -> Incoming {
        self.sealing().incoming(fields, self.now.steady)
    }

    /// What the application gets of one field, why something was stripped, and where what is deleted.
    pub fn got(&self, field: &str) -> (String, Vec<Why>, Vec<String>) {
        let incoming = self.incoming(&[field]);
        let field = incoming.fields.first().cloned().unwrap_or_default();
        let deleted = |deletion: &Deletion| {
            let field = String::from_utf8(deletion.field(false)).unwrap();
            field.replace("; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0", "")
        };
        (
            String::from_utf8(field).unwrap(),
            incoming.stripped.iter().map(|stripped| stripped.why).collect(),
            incoming.deletions.iter().map(deleted).collect(),
        )
    }
}
