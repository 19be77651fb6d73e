//! Where a browser keeps a cookie, and how to delete it there: a cookie is known by its name, its domain or host, its
//! path and whether it is partitioned, and only who names all of them deletes it.

use std::net::IpAddr;

/// Where a browser keeps a cookie of some name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub scope: Scope,
    /// Begins with `/`.
    pub path: Vec<u8>,
    /// Kept apart for each site that embeds this one (`Partitioned`).
    pub partitioned: bool,
}

/// To which hosts it is sent. In lower case, without a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// To the host alone that has set it.
    Host(Vec<u8>),
    /// To this one and all below it. Without a dot at the start.
    Domain(Vec<u8>),
}

impl Place {
    /// The host or the domain.
    pub fn host(&self) -> &[u8] {
        match &self.scope {
            Scope::Host(host) | Scope::Domain(host) => host,
        }
    }

    /// Whether a browser would send a cookie from here to `host` with a request for `path`.
    pub fn is_sent_to(&self, host: &[u8], path: &[u8]) -> bool {
        self.is_of(host) && path_matches(path, &self.path)
    }

    /// Whether an answer of `host` can set or delete a cookie here.
    pub fn is_of(&self, host: &[u8]) -> bool {
        match &self.scope {
            Scope::Host(own) => own == host,
            Scope::Domain(domain) => domain_matches(host, domain),
        }
    }

    /// The `Set-Cookie` field that deletes `name` here. `secure`: it is sent over TLS. Then it says `SameSite=None`, so
    /// that it counts also where the page of another site has asked.
    pub fn deletion(&self, name: &[u8], secure: bool) -> Vec<u8> {
        let mut field = name.to_vec();
        // a cookie with neither name nor value is none to a browser
        field.extend_from_slice(if name.is_empty() { b"=deleted" } else { b"=" });
        field.extend_from_slice(b"; Path=");
        field.extend_from_slice(&self.path);
        if let Scope::Domain(domain) = &self.scope {
            field.extend_from_slice(b"; Domain=");
            field.extend_from_slice(domain);
        }
        field.extend_from_slice(b"; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0");
        if secure {
            field.extend_from_slice(b"; Secure; SameSite=None");
        }
        if self.partitioned {
            field.extend_from_slice(b"; Partitioned");
        }
        field
    }
}

/// The path of a cookie that names none (RFC 6265 5.1.4). `path`: of the request, with or without its query. None where
/// no `Path` attribute can name it: who asks for `/a;b/c` gets a cookie at `/a;b`, and a deletion there would be read as
/// one at `/a`, with an attribute `b`.
pub fn default_path(path: &[u8]) -> Option<&[u8]> {
    let path = without_query(path);
    let folder = match path.iter().rposition(|&byte| byte == b'/') {
        Some(last) if last > 0 && path.starts_with(b"/") => path.get(..last).unwrap_or(b"/"),
        _ => b"/",
    };
    // browsers escape what is no ASCII, so none of theirs is asked for
    (can_be_named(folder) && folder.iter().all(u8::is_ascii_graphic)).then_some(folder)
}

/// The folders of a path, from the root to its own, at which a request for it may have a cookie that names no path. Those
/// alone that an attribute can name; at the most `most`, the root and the next ones to it, and its own.
pub fn folders(path: &[u8], most: usize) -> Vec<&[u8]> {
    let own = without_query(path);
    let ends = own.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let all = std::iter::once(&b"/"[..]).chain(ends.filter_map(|end| own.get(..end)));
    let mut folders: Vec<&[u8]> =
        all.filter(|folder| default_path(path).is_some() && folder.starts_with(b"/")).collect();
    folders.dedup();
    if folders.len() > most {
        let last = folders.pop();
        folders.truncate(most.saturating_sub(1));
        folders.extend(last);
    }
    folders
}

/// Whether a `Path` attribute can have this value, and browsers look at it.
pub(super) fn can_be_named(path: &[u8]) -> bool {
    let odd = |byte: &u8| *byte == b';' || byte.is_ascii_control();
    path.len() <= LONGEST_ATTRIBUTE && path.trim_ascii() == path && !path.iter().any(odd)
}

/// Browsers do not look at an attribute whose value is longer.
pub(super) const LONGEST_ATTRIBUTE: usize = 1024;

/// Whether a cookie of path `cookie` is sent with a request for `path` (RFC 6265 5.1.4).
pub fn path_matches(path: &[u8], cookie: &[u8]) -> bool {
    match without_query(path).strip_prefix(cookie) {
        Some(rest) => rest.is_empty() || cookie.ends_with(b"/") || rest.starts_with(b"/"),
        None => false,
    }
}

/// Whether `host` is `domain` or below it (RFC 6265 5.1.3): both in lower case, without a port. Nothing is below an
/// address.
pub fn domain_matches(host: &[u8], domain: &[u8]) -> bool {
    match host.strip_suffix(domain) {
        Some([]) => true,
        Some(rest) => rest.ends_with(b".") && !is_address(host),
        None => false,
    }
}

fn is_address(host: &[u8]) -> bool {
    host.starts_with(b"[") || std::str::from_utf8(host).is_ok_and(|host| host.parse::<IpAddr>().is_ok())
}

fn without_query(path: &[u8]) -> &[u8] {
    path.split(|&byte| byte == b'?').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::SetCookie;
    use super::*;

    #[test]
    fn the_path_of_a_cookie_that_names_none() {
        for (path, default) in [
            ("", "/"),
            ("x/y", "/"),
            ("/", "/"),
            ("/x", "/"),
            ("/x/", "/x"),
            ("/x/y/z", "/x/y"),
            ("/x/y?a=/b/c", "/x"),
            ("?a=/b", "/"),
            ("*", "/"),
        ] {
            assert_eq!(default_path(path.as_bytes()), Some(default.as_bytes()), "{path}");
        }
    }

    /// R3: what an attribute cannot name would name another place, or bring in attributes of the asker's choice.
    #[test]
    fn r3_a_default_path_that_no_attribute_can_name_is_none() {
        let long = [b"/", &*b"x".repeat(LONGEST_ATTRIBUTE), b"/page"].concat();
        for path in [
            &b"/a;b/c"[..],
            b"/a; Domain=example.com/c",
            b"/a;/c?d",
            b"/a\tb/c",
            b"/a\r\nb/c",
            b"/a\0/c",
            b"/a\x7f/c",
            b"/a b/c",
            b"/\xe9/c",
            &long,
        ] {
            assert_eq!(default_path(path), None, "{}", path.escape_ascii());
            assert!(folders(path, 9).is_empty(), "{}", path.escape_ascii());
        }
        // behind the folder it counts for nothing
        assert_eq!(default_path(b"/a/b;c?d=/;e"), Some(&b"/a"[..]));
        assert_eq!(
            default_path(&[b"/", &*b"x".repeat(LONGEST_ATTRIBUTE - 1), b"/y"].concat()).map(<[u8]>::len),
            Some(1024)
        );
    }

    #[test]
    fn r7_the_folders_of_a_path() {
        let folders = |path: &'static str, most| -> Vec<&str> {
            folders(path.as_bytes(), most)
                .into_iter()
                .map(|folder| std::str::from_utf8(folder).unwrap())
                .collect()
        };
        assert_eq!(folders("/", 9), ["/"]);
        assert_eq!(folders("/x", 9), ["/"]);
        assert_eq!(folders("/x/y/z?a/b", 9), ["/", "/x", "/x/y"]);
        assert_eq!(folders("*", 9), ["/"]);
        assert_eq!(folders("//x/y", 9), ["/", "//x"]);
        assert_eq!(folders("/1/2/3/4/5/6", 3), ["/", "/1", "/1/2/3/4/5"]);
    }

    #[test]
    fn which_requests_a_path_covers() {
        for (path, cookie, sent) in [
            ("/", "/", true),
            ("/x", "/x", true),
            ("/x/y", "/x", true),
            ("/x/y", "/x/", true),
            ("/x", "/x/", false),
            ("/xy", "/x", false),
            ("/X", "/x", false),
            ("/x?y", "/x", true),
            ("/", "/x", false),
        ] {
            assert_eq!(path_matches(path.as_bytes(), cookie.as_bytes()), sent, "{path} {cookie}");
        }
    }

    #[test]
    fn which_hosts_a_domain_covers() {
        for (host, domain, sent) in [
            ("a.example.com", "example.com", true),
            ("example.com", "example.com", true),
            ("xexample.com", "example.com", false),
            ("example.com", "a.example.com", false),
            ("192.0.2.1", "2.1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("[2001:db8::1]", "1]", false),
        ] {
            assert_eq!(domain_matches(host.as_bytes(), domain.as_bytes()), sent, "{host} {domain}");
        }
    }

    #[test]
    fn a_deletion_names_the_place_that_the_cookie_was_set_in() {
        for (set, deletion) in [
            (
                &b"sid=x; Path=/app; HttpOnly"[..],
                &b"sid=; Path=/app; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Secure; SameSite=None"[..],
            ),
            (
                b"sid=x; Domain=.example.com; Path=/; Secure; Partitioned",
                b"sid=; Path=/; Domain=example.com; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Secure; \
                  SameSite=None; Partitioned",
            ),
            (
                b"alone",
                b"=deleted; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Secure; SameSite=None",
            ),
        ] {
            let set = SetCookie::parse(set);
            let place = set.place(b"app.example.com", b"/").unwrap();
            let written = place.deletion(set.name(), true);
            assert_eq!(written.escape_ascii().to_string(), deletion.escape_ascii().to_string());
            let read = SetCookie::parse(&written);
            assert!(read.deletes(SystemTime::UNIX_EPOCH), "by its age, whatever the clock says");
            assert_eq!((read.name(), read.place(b"app.example.com", b"/other/")), (set.name(), Some(place)));
        }
        let place = Place { scope: Scope::Host(b"h".to_vec()), path: b"/".to_vec(), partitioned: false };
        assert_eq!(
            place.deletion(b"a", false),
            b"a=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0"
        );
    }

    #[test]
    fn a_place_is_for_its_hosts_and_paths_alone() {
        let place = Place { scope: Scope::Host(b"a.b".to_vec()), path: b"/x".to_vec(), partitioned: false };
        assert!(place.is_sent_to(b"a.b", b"/x/y"));
        assert!(!place.is_sent_to(b"c.b", b"/x/y") && !place.is_sent_to(b"a.b", b"/y"));
        let wide = Place { scope: Scope::Domain(b"b".to_vec()), ..place };
        assert!(wide.is_sent_to(b"c.b", b"/x") && !wide.is_sent_to(b"c.d", b"/x"));
    }
}
