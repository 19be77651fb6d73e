//! Which interface gets the programs of which role: as configured, or as the host's own addresses and routes show.

use crate::dataplane::Role;
use crate::links::{Link, Wanted};

/// The patterns of one configuration. `None`: the interfaces are to be found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Patterns {
    pub outer: Option<Vec<String>>,
    pub inner: Option<Vec<String>>,
}

impl Patterns {
    /// What has to be known of the interfaces.
    pub fn wanted(&self) -> Wanted {
        // by the routes it is known what is outside, and so what else is inside
        let routes = self.outer.is_none();
        Wanted { addresses: self.inner.is_none(), routes }
    }

    /// Whether it is the name alone that decides whether an interface has this role.
    pub fn names(&self, role: Role) -> bool {
        match role {
            Role::Outer => self.outer.is_some(),
            Role::Inner | Role::Tunnel => self.inner.is_some(),
        }
    }

    /// Names (not patterns) that no interface has.
    pub fn missing(&self, links: &[Link]) -> Vec<String> {
        let names = self.outer.iter().chain(&self.inner).flatten();
        let mut missing: Vec<String> = names
            .filter(|name| !name.contains('*') && !links.iter().any(|link| link.name == **name))
            .cloned()
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }
}

/// What goes where.
pub(super) fn choose<'a>(links: &'a [Link], patterns: &Patterns) -> Vec<(&'a Link, Role)> {
    let Patterns { outer, inner } = patterns;
    let named =
        |patterns: &[String], link: &Link| patterns.iter().any(|pattern| matches(pattern, &link.name));
    let is_outer = |link: &Link| match outer {
        Some(patterns) => named(patterns, link),
        None => link.has_default_route,
    };
    let mut chosen = Vec::new();
    let mut lan = Vec::new();
    for link in links {
        if is_outer(link) {
            chosen.push((link, Role::Outer));
        }
        let is_inner = match inner {
            Some(patterns) => named(patterns, link),
            None => link.ethernet && link.has_address && !is_outer(link),
        };
        if is_inner {
            lan.push(link);
        }
    }
    // a gateway with one arm has its LAN behind the same interface
    if inner.is_none() && lan.is_empty() {
        lan = links.iter().filter(|link| is_outer(link)).collect();
    }
    for link in lan {
        // a tunnel device that a pattern names carries bare IP, and each direction the other way round
        let role = if link.ethernet { Role::Inner } else { Role::Tunnel };
        chosen.push((link, role));
    }
    chosen
}

/// A name, or a pattern with `*` for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|name| {
            (0..=name.len()).filter(|at| name.is_char_boundary(*at)).any(|at| matches(rest, &name[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, has_address: bool, has_default_route: bool) -> Link {
        Link { index, name: name.into(), ethernet: true, has_address, has_default_route }
    }

    fn patterns(outer: Option<&[&str]>, inner: Option<&[&str]>) -> Patterns {
        let owned =
            |names: Option<&[&str]>| names.map(|names| names.iter().map(|n| (*n).to_owned()).collect());
        Patterns { outer: owned(outer), inner: owned(inner) }
    }

    fn chosen(links: &[Link], outer: Option<&[&str]>, inner: Option<&[&str]>) -> Vec<(u32, Role)> {
        let patterns = patterns(outer, inner);
        choose(links, &patterns).into_iter().map(|(link, role)| (link.index, role)).collect()
    }

    #[test]
    fn with_no_configuration_the_default_route_is_outside_and_the_rest_inside() {
        let links = [
            link(1, "lo", false, false),
            link(2, "eth0", true, true),
            link(3, "eth1", true, false),
            link(4, "x", false, false),
        ];
        assert_eq!(chosen(&links, None, None), [(2, Role::Outer), (3, Role::Inner)]);
        assert_eq!(chosen(&links[..2], None, None), [(2, Role::Outer), (2, Role::Inner)]);
    }

    #[test]
    fn patterns_name_interfaces_and_an_empty_list_none() {
        let mut tun = link(5, "vpns0", true, false);
        tun.ethernet = false;
        let links = [link(2, "eth0", true, true), link(3, "eth1", true, false), tun];
        assert_eq!(
            chosen(&links, Some(&["eth*"]), Some(&["vpns*"])),
            [(2, Role::Outer), (3, Role::Outer), (5, Role::Tunnel)]
        );
        assert_eq!(chosen(&links, Some(&[]), Some(&[])), []);
        assert!(matches("a*b*c", "aXbYc") && matches("*", "") && !matches("a*b", "acd"));
    }

    #[test]
    fn a_name_that_no_interface_has_is_missing_and_a_pattern_is_not() {
        let links = [link(2, "eth0", true, true)];
        let patterns = patterns(Some(&["eth0", "eth7"]), Some(&["eth7", "vpns*", "eth8"]));
        assert_eq!(patterns.missing(&links), ["eth7", "eth8"]);
        assert_eq!(Patterns::default().missing(&links), [""; 0]);
    }

    #[test]
    fn whoever_names_his_interfaces_is_not_asked_for_routes() {
        let wanted = |outer, inner| patterns(outer, inner).wanted();
        assert_eq!(wanted(None, None), Wanted { addresses: true, routes: true });
        assert_eq!(wanted(Some(&["a"]), None), Wanted { addresses: true, routes: false });
        assert_eq!(wanted(None, Some(&["a"])), Wanted { addresses: false, routes: true });
        assert_eq!(wanted(Some(&["a"]), Some(&[])), Wanted { addresses: false, routes: false });
    }
}
