//! The gate without the daemon: the pinned maps (or after a reboot the disk) say who is revoked or locked, ocserv says
//! who is at the door.

use std::time::Duration;

use super::{Decision, Login};
use crate::config::{Config, Server};
use crate::dataplane::GateMaps;
use crate::ocserv::Client;
use crate::process;
use crate::session::{CutoffKey, Identity, LockKey, SafeId};
use crate::store::Reader;

/// ocserv answers in under a millisecond while the script runs.
const OCSERV_WITHIN: Duration = Duration::from_secs(2);
/// How far up the gate looks for ocserv's main process: ocserv's own firewall script may stand between.
const ANCESTORS: usize = 8;

/// Where what stands can be read without the daemon: the pinned maps, or after a reboot, before the daemon runs, the
/// disk.
enum Standing {
    Maps(Box<GateMaps>),
    Disk(Box<Reader>),
}

impl Standing {
    fn find(config: &Config) -> Result<Self, String> {
        let pins = config.kernel.pin_path.display();
        match GateMaps::open(&config.kernel.pin_path) {
            Ok(Some(maps)) => return Ok(Self::Maps(Box::new(maps))),
            Ok(None) => {}
            Err(error) => return Err(format!("the pinned maps cannot be read: {error:#}")),
        }
        match Reader::open(&config.state.directory) {
            Ok(Some(reader)) => Ok(Self::Disk(Box::new(reader))),
            Ok(None) => Err(format!(
                "there are no pinned maps below {pins}, and no database in {}",
                config.state.directory.display()
            )),
            Err(error) => Err(format!("there are no pinned maps below {pins}, and {error}")),
        }
    }

    /// The lock of that person.
    fn lock(&self, who: &Identity) -> Result<Option<u64>, String> {
        let key = LockKey::new(who);
        match self {
            Self::Maps(maps) => {
                maps.lock(&key).map(|facts| facts.map(|facts| facts.revocation)).map_err(unreadable)
            }
            Self::Disk(reader) => reader.lock(&key, wall()).map_err(|error| error.to_string()),
        }
    }

    /// The revocation of that cookie.
    fn safe_id(&self, id: &SafeId) -> Result<Option<u64>, String> {
        match self {
            Self::Maps(maps) => {
                maps.safe_id(id).map(|facts| facts.map(|facts| facts.revocation)).map_err(unreadable)
            }
            Self::Disk(reader) => reader.safe_id(id).map_err(|error| error.to_string()),
        }
    }

    /// The revocation of that user's older cookies, and up to when they were made.
    fn cutoff(&self, key: &CutoffKey) -> Result<Option<(u64, u64)>, String> {
        match self {
            Self::Maps(maps) => maps
                .cutoff(key)
                .map(|facts| facts.map(|facts| (facts.revocation, facts.up_to)))
                .map_err(unreadable),
            Self::Disk(reader) => reader.cutoff(key).map_err(|error| error.to_string()),
        }
    }
}

fn unreadable(error: anyhow::Error) -> String {
    format!("the pinned maps cannot be read: {error:#}")
}

fn wall() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `why`: what was wrong with the daemon.
pub(super) async fn decide(config: &Config, login: &Login, why: &str) -> Decision {
    match decide_by(config, login).await {
        Ok(Decision::Refuse(reason)) => Decision::Refuse(format!("{reason}; {why}")),
        Ok(decision) => decision,
        Err(blind) => Decision::Blind(format!("{why}, and {blind}")),
    }
}

/// `Err`: what cannot be seen.
async fn decide_by(config: &Config, login: &Login) -> Result<Decision, String> {
    let standing = Standing::find(config)?;
    let realms = config.realms();
    let (server, safe_id) = match whose(config, login.id, &login.user).await {
        Ok(found) => found,
        Err(error) => {
            // whose login it is need not be known where the name is locked wherever it may be
            let locked = config.ocserv.iter().map(|server| {
                standing.lock(&realms.identity(&server.server_name(), &login.vhost, &login.user))
            });
            let locked: Vec<Option<u64>> = locked.collect::<Result<_, String>>()?;
            return match locked
                .iter()
                .all(Option::is_some)
                .then(|| locked.first().copied().flatten())
                .flatten()
            {
                Some(number) => Ok(Decision::Refuse(format!("the user is locked (lock {number})"))),
                None => Err(error),
            };
        }
    };
    let name = server.server_name();
    let who = realms.identity(&name, &login.vhost, &login.user);
    if let Some(number) = standing.lock(&who)? {
        return Ok(Decision::Refuse(format!("the user is locked (lock {number})")));
    }
    if let Some(number) = standing.safe_id(&safe_id)? {
        return Ok(Decision::Refuse(format!("its session was revoked (revocation {number})")));
    }
    if let Some((number, up_to)) = standing.cutoff(&CutoffKey::of(&name, &who))? {
        match created(server, &safe_id).await {
            Some(created) if created > up_to => {}
            Some(_) => {
                return Ok(Decision::Refuse(format!("its session was revoked (revocation {number})")));
            }
            None => {
                return Ok(Decision::Refuse(format!(
                    "the user was revoked (revocation {number}), and ocserv cannot tell whether this cookie was made before or after"
                )));
            }
        }
    }
    Ok(Decision::Admit { server: Some(server.name.clone()) })
}

/// The server that runs this script, and the safe_id of the login.
async fn whose<'a>(config: &'a Config, id: i32, user: &str) -> Result<(&'a Server, SafeId), String> {
    let servers: Vec<&Server> = config.ocserv.iter().collect();
    let mut candidates = servers.clone();
    if servers.len() > 1 {
        let above = ancestors();
        let mut mine = Vec::new();
        for server in &servers {
            // a server that does not answer is not the one whose script we are
            if let Ok(main) = client(server).peer().await
                && above.contains(&main.pid)
            {
                mine.push(*server);
            }
        }
        if !mine.is_empty() {
            candidates = mine;
        }
    }
    let mut last = "no server knows this login".to_owned();
    for server in candidates {
        match client(server).id_info(id).await {
            Ok(Some(observed)) if observed.user == user => match observed.safe_id {
                Some(safe_id) => return Ok((server, safe_id)),
                None => last = "ocserv did not tell the safe_id of this login".into(),
            },
            Ok(_) => last = format!("ocserv does not know a login of that user with id {id}"),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn client(server: &Server) -> Client {
    Client::new(&server.control_socket, OCSERV_WITHIN)
}

fn ancestors() -> Vec<i32> {
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    std::iter::successors(Some(me), |pid| process::parent(*pid).ok().filter(|parent| *parent > 1))
        .take(ANCESTORS)
        .collect()
}

/// When the cookie was made, in unix seconds.
async fn created(server: &Server, safe_id: &SafeId) -> Option<u64> {
    let cookies = client(server).cookies().await.ok()?;
    cookies.cookies.iter().find(|cookie| cookie.safe_id == *safe_id).map(|cookie| cookie.created)
}
