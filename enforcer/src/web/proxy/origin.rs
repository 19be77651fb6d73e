//! The applications behind the gateway, and which of them a request is for.

mod path;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::Uri;
use hyper::header::HeaderValue;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::settings;
use super::tls::{self, TlsError};

pub(super) use path::is_plain;

/// Why an origin cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error("origin {origin}: {text}")]
    Invalid { origin: String, text: String },
    #[error("origin {origin}: {error}")]
    Tls { origin: String, error: Box<TlsError> },
}

/// One application.
pub struct Origin {
    index: usize,
    name: String,
    host: Host,
    path: String,
    place: Place,
    authority: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    host_header: Option<HeaderValue>,
    max_body: u64,
    upgrades: Vec<String>,
}

/// Where it listens.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Address(SocketAddr),
    /// Asked for anew with every connection.
    Name(String, u16),
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    Exact(String),
    /// `.example.com`: one label before it.
    Below(String),
}

impl Origin {
    /// What the configuration calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path below which it serves, without a slash at the end; empty for all.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its place among the origins.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn tls(&self) -> Option<&(TlsConnector, ServerName<'static>)> {
        self.tls.as_ref()
    }

    /// The `Host` that it is told instead of the browser's.
    pub(super) fn host_header(&self) -> Option<&HeaderValue> {
        self.host_header.as_ref()
    }

    pub(super) fn max_body(&self) -> u64 {
        self.max_body
    }

    pub(super) fn upgrades_to(&self, protocol: &str) -> bool {
        self.upgrades.iter().any(|known| known.eq_ignore_ascii_case(protocol))
    }

    fn new(index: usize, settings: &settings::Origin) -> Result<Self, OriginError> {
        let invalid = |text: String| OriginError::Invalid { origin: settings.name.clone(), text };
        let host = settings.host.to_ascii_lowercase();
        let host = match host.strip_prefix('*') {
            Some(below) if below.starts_with('.') && is_host(&below[1..]) => Host::Below(below.to_owned()),
            None if is_host(&host) => Host::Exact(host),
            _ => {
                return Err(invalid(format!(
                    "host {:?} is none: write app.example.com or *.example.com, without a port",
                    settings.host
                )));
            }
        };
        if !settings.path.starts_with('/') || !is_plain(&settings.path) || settings.path.contains(['?', '#'])
        {
            return Err(invalid(format!("path {:?} is none: write / or /app", settings.path)));
        }
        let address: Uri = settings
            .address
            .parse()
            .map_err(|_| invalid(format!("address {:?} is no address", settings.address)))?;
        let (Some(scheme), Some(authority)) = (address.scheme_str(), address.authority()) else {
            return Err(invalid(format!(
                "address {:?} is incomplete: write http://127.0.0.1:8000",
                settings.address
            )));
        };
        if address.path() != "/" || address.query().is_some() || authority.as_str().contains('@') {
            return Err(invalid(format!(
                "address {:?} says too much: a host and a port are enough",
                settings.address
            )));
        }
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = match scheme {
            "http" => false,
            "https" => true,
            other => return Err(invalid(format!("address: {other} is not known: write http or https"))),
        };
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let place = match name.parse::<IpAddr>() {
            Ok(address) => Place::Address(SocketAddr::new(address, port)),
            Err(_) => Place::Name(name.clone(), port),
        };
        let tls = if secure {
            let name = settings.server_name.clone().unwrap_or(name);
            let name = ServerName::try_from(name)
                .map_err(|error| invalid(format!("its certificate cannot be for that name: {error}")))?;
            let connector = tls::connector(settings.ca.as_deref()).map_err(|error| OriginError::Tls {
                origin: settings.name.clone(),
                error: Box::new(error),
            })?;
            Some((connector, name))
        } else {
            None
        };
        let header = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| invalid(format!("{text:?} cannot be sent as a Host")))
        };
        Ok(Self {
            index,
            name: settings.name.clone(),
            host,
            path: settings.path.trim_end_matches('/').to_owned(),
            place,
            authority: header(authority.as_str())?,
            tls,
            host_header: settings.host_header.as_deref().map(header).transpose()?,
            max_body: settings.max_body,
            upgrades: settings.upgrades.clone(),
        })
    }

    /// How well it fits: the longer the better, an exact host above every other.
    fn fits(&self, host: &str, path: &str) -> Option<(bool, usize)> {
        let exact = match &self.host {
            Host::Exact(ours) => ours.eq_ignore_ascii_case(host).then_some(true)?,
            Host::Below(ours) => {
                let label = host.len().checked_sub(ours.len()).filter(|label| *label > 0)?;
                let (label, rest) = host.split_at_checked(label)?;
                (!label.contains('.') && rest.eq_ignore_ascii_case(ours)).then_some(false)?
            }
        };
        let rest = path.strip_prefix(self.path.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some((exact, self.path.len()))
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Origin({} at {:?})", self.name, self.authority)
    }
}

/// Letters, digits, dots and hyphens: what a name or an IPv4 address is made of; or an IPv6 address in brackets.
pub(super) fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    (1..=253).contains(&host.len())
        && !host.starts_with('.')
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Origins {
    all: Vec<Arc<Origin>>,
}

impl Origins {
    pub(super) fn new(settings: &[settings::Origin]) -> Result<Self, OriginError> {
        let mut all: Vec<Arc<Origin>> = Vec::new();
        for (index, one) in settings.iter().enumerate() {
            let origin = Origin::new(index, one)?;
            let twin = all.iter().find(|other| {
                other.name == origin.name || (other.host == origin.host && other.path == origin.path)
            });
            if let Some(twin) = twin {
                let text = format!("its name, or its host and path, are those of origin {} too", twin.name);
                return Err(OriginError::Invalid { origin: one.name.clone(), text });
            }
            all.push(Arc::new(origin));
        }
        Ok(Self { all })
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// The one for that host (without a port) and path.
    pub(super) fn find(&self, host: &str, path: &str) -> Option<&Arc<Origin>> {
        let fitting = self.all.iter().filter_map(|origin| Some((origin.fits(host, path)?, origin)));
        fitting.max_by_key(|(fit, _)| *fit).map(|(_, origin)| origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(places: &[(&str, &str)]) -> Origins {
        let settings: Vec<settings::Origin> = places
            .iter()
            .enumerate()
            .map(|(number, (host, path))| {
                toml::from_str(&format!(
                    "name = \"{number}\"\nhost = \"{host}\"\npath = \"{path}\"\naddress = \"http://127.0.0.1:1\""
                ))
                .unwrap()
            })
            .collect();
        Origins::new(&settings).unwrap()
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let origins = origins(&[
            ("a.example", "/"),
            ("a.example", "/app"),
            ("a.example", "/app/deep/"),
            ("*.example", "/"),
            ("*.example", "/app/deep/down"),
        ]);
        let find = |host, path| origins.find(host, path).map(|origin| origin.name().to_owned());
        for (host, path, name) in [
            ("a.example", "/", "0"),
            ("a.example", "/apple", "0"),
            ("a.example", "/app", "1"),
            ("A.Example", "/app/", "1"),
            ("a.example", "/app/deep", "2"),
            ("a.example", "/app/deep/down", "2"),
            ("a.example", "/app/deeper", "1"),
            ("b.example", "/app", "3"),
            ("b.example", "/app/deep/down/x", "4"),
        ] {
            assert_eq!(find(host, path).as_deref(), Some(name), "{host}{path}");
        }
        for host in ["example", ".example", "a.b.example", "a.example.org", ""] {
            assert_eq!(find(host, "/"), None, "{host}");
        }
    }

    #[test]
    fn what_cannot_be_an_origin_is_refused() {
        let with = |key: &str, value: &str| {
            let mut keys = vec![("name", "x"), ("host", "a.example"), ("address", "http://127.0.0.1:1")];
            keys.retain(|(other, _)| *other != key);
            keys.push((key, value));
            let text: String = keys.iter().map(|(key, value)| format!("{key} = \"{value}\"\n")).collect();
            Origins::new(&[toml::from_str(&text).unwrap()])
        };
        assert!(with("path", "/app").is_ok());
        for (key, value) in [
            ("host", ""),
            ("host", "a.example:8080"),
            ("host", "*"),
            ("host", "a*.example"),
            ("path", "app"),
            ("path", "/a/../b"),
            ("path", "/a?b"),
            ("address", "127.0.0.1:8000"),
            ("address", "ftp://127.0.0.1"),
            ("address", "http://127.0.0.1/app"),
            ("address", "http://user@127.0.0.1"),
            ("host-header", "a\\nb"),
        ] {
            let error = with(key, value).unwrap_err().to_string();
            assert!(error.starts_with("origin x: "), "{key} {value}: {error}");
        }
    }
}
