//! Several gateways and an etcd, all in memory: whatever is cut off, falls behind or dies in between.

mod bounds;
mod etcd;
mod gateways;
mod stories;

use crate::session::{DEFAULT_REALM, Identity, SafeId, SessionId, WebKey};

fn person(name: &str) -> Identity {
    Identity { realm: DEFAULT_REALM.into(), name: name.into() }
}

fn cookie(n: u32) -> SessionId {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    match n % 5 {
        4 => SessionId::Web(WebKey::from_bytes(std::array::from_fn(|place| bytes[place]))),
        _ => SessionId::Vpn(SafeId::from_bytes(bytes)),
    }
}
