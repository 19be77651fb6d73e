//! Header fields that no client may send: an origin believes what they say.

use hyper::HeaderMap;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_TYPE, COOKIE, FORWARDED, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE,
};

use super::forwarded::{FOR, PROTO, SAID_BY_PROXIES};

/// How the names begin that a proxy writes. Those that are known are treated apart: what is behind them is an address, a
/// port, a scheme. All others (`X-Forwarded-User`) say who somebody is.
const OF_PROXIES: &str = "x-forwarded-";

/// The names, in lower case.
#[derive(Debug)]
pub(in super::super) struct Reserved {
    exact: Vec<String>,
    prefixes: Vec<String>,
    /// With which bytes a name that is looked at begins: most are passed over at a glance.
    firsts: [bool; 256],
}

impl Reserved {
    /// From `x-remote-user` and `x-ssl-client-*`. An error says which of them is none.
    pub(in super::super) fn new(names: &[String]) -> Result<Self, String> {
        let mut reserved = Self { exact: Vec::new(), prefixes: Vec::new(), firsts: [false; 256] };
        for name in names {
            let (text, is_prefix) = match name.strip_suffix('*') {
                Some(text) => (text, true),
                None => (name.as_str(), false),
            };
            if HeaderName::from_bytes(text.as_bytes()).is_err() || text.contains('*') {
                return Err(format!(
                    "never-from-clients: {name:?} is no header field: write x-remote-user, or x-remote-* for all that \
                     begin so"
                ));
            }
            let text = plain(&text.to_ascii_lowercase());
            let covers = |needed: &HeaderName| {
                needed.as_str() == text || is_prefix && needed.as_str().starts_with(&text)
            };
            if let Some(needed) = needed().find(|needed| covers(needed)) {
                return Err(format!(
                    "never-from-clients: {name:?} would take away {needed}, which is needed"
                ));
            }
            let list = if is_prefix { &mut reserved.prefixes } else { &mut reserved.exact };
            list.push(text);
        }
        let ours = needed().filter_map(|name| name.as_str().bytes().next());
        let named = reserved.exact.iter().chain(&reserved.prefixes).filter_map(|name| name.bytes().next());
        for first in ours.chain(named) {
            reserved.firsts[usize::from(first)] = true;
        }
        Ok(reserved)
    }

    /// Takes them out, and with them what would be read as one of them, or as a field that the gateway writes, where all
    /// but letters and digits is the same (CGI, WSGI: `X_Remote.User`). What was taken out is returned under the names
    /// that it had.
    pub(in super::super) fn take(&self, headers: &mut HeaderMap) -> HeaderMap {
        let mut taken = HeaderMap::new();
        let bad: Vec<HeaderName> =
            headers.keys().filter(|name| self.is_bad(name.as_str())).cloned().collect();
        for name in bad {
            if let hyper::header::Entry::Occupied(entry) = headers.entry(&name) {
                for value in entry.remove_entry_mult().1 {
                    taken.append(&name, value);
                }
            }
        }
        taken
    }

    fn is_bad(&self, name: &str) -> bool {
        let first = name.bytes().next().unwrap_or(0);
        if !self.firsts[usize::from(first)] {
            return false;
        }
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return self.is_reserved(name);
        }
        let name = plain(name);
        self.is_reserved(&name)
            || is_of_proxies(&name)
            || READ_BY_ALL.iter().any(|ours| ours.as_str() == name)
    }

    fn is_reserved(&self, name: &str) -> bool {
        (name.starts_with(OF_PROXIES) && !is_of_proxies(name))
            || self.exact.iter().any(|exact| exact == name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }
}

/// What decides how a request is read, and what only one spelling of may reach an origin.
static READ_BY_ALL: [HeaderName; 7] =
    [HOST, COOKIE, FORWARDED, TRANSFER_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, UPGRADE];
static OURS: [HeaderName; 3] = [FOR, PROTO, super::forwarded::HOST];

/// What the gateway itself writes or reads.
fn needed() -> impl Iterator<Item = &'static HeaderName> {
    READ_BY_ALL.iter().chain(&OURS).chain(&SAID_BY_PROXIES)
}

fn is_of_proxies(name: &str) -> bool {
    OURS.iter().chain(&SAID_BY_PROXIES).any(|known| known.as_str() == name)
}

/// As CGI reads it.
fn plain(name: &str) -> String {
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn left(names: &[&str], fields: &[&str]) -> (Vec<String>, Vec<String>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(HeaderName::from_bytes(field.as_bytes()).unwrap(), HeaderValue::from_static("1"));
        }
        let taken = Reserved::new(&names).unwrap().take(&mut headers);
        let sorted = |headers: &HeaderMap| {
            let mut names: Vec<_> = headers.iter().map(|(name, _)| name.to_string()).collect();
            names.sort();
            names
        };
        (sorted(&headers), sorted(&taken))
    }

    #[test]
    fn what_says_who_somebody_is_never_comes_from_a_client() {
        let kept =
            ["accept", "cookie", "host", "x-forwarded-for", "x-kept", "x-remotely", "x-requested-with"];
        let gone = [
            "remote-user",
            "remote_user",
            "x-forwarded-email",
            "x-forwarded-user",
            "x-remote-group",
            "x-remote-user",
            "x-remote-user",
            "x.remote_user",
            "x_forwarded_for",
            "x_forwarded_user",
            "content_length",
            "transfer.encoding",
        ];
        let all: Vec<&str> = kept.iter().chain(&gone).copied().collect();
        let (left, taken) = left(&["Remote-User", "X-Remote-*"], &all);
        let mut gone = gone.to_vec();
        gone.sort_unstable();
        assert_eq!(
            (left, taken),
            (kept.map(str::to_owned).to_vec(), gone.iter().map(|s| (*s).to_owned()).collect())
        );
    }

    #[test]
    fn the_default_list_holds_what_is_common_and_can_be_read() {
        let names = crate::web::proxy::Settings::default().never_from_clients;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (left, _) = left(
            &names,
            &[
                "x-remote-user",
                "x-auth-request-email",
                "x-ssl-client-s-dn",
                "x-original-url",
                "x-webauth-user",
            ],
        );
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn what_is_no_name_or_is_needed_is_refused() {
        for bad in ["", "*", "a b\n", "x-*-y", "host", "Cookie", "content_length", "x-forwarded-for", "x-*"] {
            let error = Reserved::new(&[bad.to_owned()]);
            assert!(error.is_err(), "{bad:?}");
        }
    }
}
