//! The gate without the daemon: the pinned maps say who is revoked, ocserv says who is at the door.

use std::time::Duration;

use super::Decision;
use crate::config::{Config, Server};
use crate::dataplane::GateMaps;
use crate::ocserv::Client;
use crate::process;
use crate::session::{CutoffKey, SafeId};

/// ocserv answers in under a millisecond while the script runs.
const OCSERV_WITHIN: Duration = Duration::from_secs(2);
/// How far up the gate looks for ocserv's main process: ocserv's own firewall script may stand between.
const ANCESTORS: usize = 8;

/// `why`: what was wrong with the daemon.
pub(super) async fn decide(config: &Config, id: i32, user: &str, why: &str) -> Decision {
    let maps = match GateMaps::open(&config.kernel.pin_path) {
        Ok(Some(maps)) => maps,
        Ok(None) => {
            let path = config.kernel.pin_path.display();
            return Decision::Blind(format!("{why}, and there are no pinned maps below {path}"));
        }
        Err(error) => {
            return Decision::Blind(format!("{why}, and the pinned maps cannot be read: {error:#}"));
        }
    };
    let (server, safe_id) = match whose(config, id, user).await {
        Ok(found) => found,
        Err(error) => return Decision::Blind(format!("{why}, and {error}")),
    };
    match maps.safe_id(&safe_id) {
        Ok(Some(facts)) => {
            return Decision::Refuse(format!(
                "its session was revoked (revocation {}); {why}",
                facts.revocation
            ));
        }
        Ok(None) => {}
        Err(error) => {
            return Decision::Blind(format!("{why}, and the pinned maps cannot be read: {error:#}"));
        }
    }
    match maps.cutoff(&CutoffKey::new(&server.server_name(), user)) {
        Ok(None) => {}
        Ok(Some(cutoff)) => match created(server, &safe_id).await {
            Some(created) if created > cutoff.up_to => {}
            Some(_) => {
                return Decision::Refuse(format!(
                    "its session was revoked (revocation {}); {why}",
                    cutoff.revocation
                ));
            }
            None => {
                return Decision::Refuse(format!(
                    "the user was revoked (revocation {}), and ocserv cannot tell whether this cookie was made before or after",
                    cutoff.revocation
                ));
            }
        },
        Err(error) => {
            return Decision::Blind(format!("{why}, and the pinned maps cannot be read: {error:#}"));
        }
    }
    Decision::Admit { server: Some(server.name.clone()) }
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
            if let Ok(main) = client(server).peer().await {
                if above.contains(&main.pid) {
                    mine.push(*server);
                }
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
