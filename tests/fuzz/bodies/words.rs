//! What people type: durations, safe_ids, flows, tokens.
use std::net::SocketAddr;
use std::time::Duration;

use enforcer::cli::parse_duration;
use enforcer::session::{Flow, Protocol, SafeId, Token, TokenKind};

const HUNDRED_YEARS: Duration = Duration::from_secs(100 * 365 * 86_400);

pub fn body(input: &[u8]) {
    let text = super::text(input);
    if let Ok(duration) = parse_duration(text) {
        assert!(duration >= Duration::from_secs(1) && duration <= HUNDRED_YEARS);
        assert_eq!(parse_duration(&format!("{}s", duration.as_secs())), Ok(duration));
    }
    if let Ok(id) = text.parse::<SafeId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(SafeId::from_wire(text.as_bytes()), Ok(id));
    }
    let _ = SafeId::from_wire(text.as_bytes());
    let words: Vec<&str> = text.split_whitespace().take(4).collect();
    if let [protocol, client, local, ..] = words[..]
        && let (Ok(protocol), Ok(client), Ok(local)) =
            (protocol.parse::<Protocol>(), client.parse::<SocketAddr>(), local.parse::<SocketAddr>())
        && let Ok(flow) = Flow::new(protocol, client, local)
    {
        assert_eq!(flow.client().is_ipv4(), flow.local().is_ipv4());
        assert!(flow.client().port() != 0 && flow.local().port() != 0);
        // an IPv4 address is never kept in its mapped form: on the wire it is IPv4
        assert_eq!(flow.client().ip(), flow.client().ip().to_canonical());
    }
    for kind in TokenKind::ALL {
        if let Ok(token) = Token::new(kind, text.as_bytes().to_vec()) {
            assert_eq!(token.to_string().len(), kind.name().len() + 1 + 2 * text.len());
        }
    }
}
