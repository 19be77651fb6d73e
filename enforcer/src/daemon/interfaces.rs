//! Which interfaces the programs go to: as configured, or as the host's own addresses and routes show.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::dataplane::Role;
use crate::session::{Device, Netns, ServerName};

use super::{Daemon, Input};

/// One interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    /// An Ethernet device: it has link-layer headers (`ARPHRD_ETHER`); others carry bare IP.
    pub ethernet: bool,
    pub has_address: bool,
    pub has_default_route: bool,
}

/// What goes where.
pub(super) fn choose(
    links: &[Link],
    outer: Option<&[String]>,
    inner: Option<&[String]>,
) -> Vec<(Device0, Role)> {
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
            chosen.push((Device0 { index: link.index, name: link.name.clone() }, Role::Outer));
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
        chosen.push((Device0 { index: link.index, name: link.name.clone() }, role));
    }
    chosen
}

/// An interface in a namespace that is known from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device0 {
    pub index: u32,
    pub name: String,
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

impl Daemon {
    pub(super) fn attach_own_interfaces(&mut self) {
        let own = self.namespaces.own();
        let links = match links(None) {
            Ok(links) => links,
            Err(error) => return self.warn(format!("the interfaces cannot be listed: {error:#}")),
        };
        let (outer, inner) = (self.config.kernel.outer.clone(), self.config.kernel.inner.clone());
        self.attach_chosen(own, choose(&links, outer.as_deref(), inner.as_deref()));
        self.sweep();
    }

    /// The interfaces of a namespace that an ocserv server lives in, by that server's settings.
    pub(super) fn attach_foreign_interfaces(&mut self, name: &ServerName, netns: Netns) {
        let Some(fd) = self.namespaces.fd(netns) else { return };
        let links = match links(Some(fd)) {
            Ok(links) => links,
            Err(error) => return self.warn(format!("{name}: its interfaces cannot be listed: {error:#}")),
        };
        let settings = self
            .servers
            .get(name)
            .map(|server| (server.settings.outer.clone(), server.settings.inner.clone()));
        let (outer, inner) = settings.unwrap_or_default();
        self.attach_chosen(netns, choose(&links, outer.as_deref(), inner.as_deref()));
    }

    fn attach_chosen(&mut self, netns: Netns, chosen: Vec<(Device0, Role)>) {
        for (Device0 { index, name }, role) in chosen {
            let device = Device { netns, index };
            self.attach(device, &name, role);
            self.devices.insert(device);
        }
    }
}

/// The interfaces of a namespace (`None`: the own one), by rtnetlink.
fn links(netns: Option<std::os::fd::BorrowedFd<'_>>) -> anyhow::Result<Vec<Link>> {
    // a thread of its own: it moves to the namespace and never comes back, and it may run a runtime
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| {
            if let Some(netns) = netns {
                nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(list_links())
        });
        listing.join().map_err(|_| anyhow::anyhow!("the thread that lists them broke"))?
    })
}

async fn list_links() -> anyhow::Result<Vec<Link>> {
    use netlink_packet_route::address::AddressAttribute;
    use netlink_packet_route::link::{LinkAttribute, LinkLayerType};
    use netlink_packet_route::route::RouteAttribute;

    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let mut addressed = BTreeSet::new();
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.next().await {
        let address = address?;
        let own = address
            .attributes
            .iter()
            .any(|a| matches!(a, AddressAttribute::Address(_) | AddressAttribute::Local(_)));
        // a link-local address says nothing: every interface has one
        let global = address.header.scope == netlink_packet_route::address::AddressScope::Universe;
        if own && global {
            addressed.insert(address.header.index);
        }
    }
    let mut default_routes = BTreeSet::new();
    for request in [
        rtnetlink::RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        rtnetlink::RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(request).execute();
        while let Some(route) = routes.next().await {
            let route = route?;
            let unicast = route.header.kind == netlink_packet_route::route::RouteType::Unicast;
            if route.header.destination_prefix_length == 0 && unicast {
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Oif(index) => {
                            default_routes.insert(*index);
                        }
                        RouteAttribute::MultiPath(hops) => {
                            default_routes.extend(hops.iter().map(|hop| hop.interface_index));
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    let mut found = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.next().await {
        let link = link?;
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let index = link.header.index;
        found.push(Link {
            index,
            name: name.unwrap_or_default(),
            ethernet: link.header.link_layer_type == LinkLayerType::Ether,
            has_address: addressed.contains(&index),
            has_default_route: default_routes.contains(&index),
        });
    }
    Ok(found)
}

/// Tells the loop whenever interfaces come, go or change.
/// `routes`: default routes decide which interface is the outer one. Otherwise a router's many routes are nothing to us.
pub(super) fn watch(inputs: mpsc::Sender<Input>, routes: bool) {
    tokio::spawn(async move {
        loop {
            if let Err(error) = watch_once(&inputs, routes).await {
                tracing::warn!(%error, "interfaces cannot be watched; trying again");
            }
            if inputs.is_closed() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            // what changed meanwhile
            let _ = inputs.send(Input::Links).await;
        }
    });
}

async fn watch_once(inputs: &mpsc::Sender<Input>, routes: bool) -> anyhow::Result<()> {
    use rtnetlink::MulticastGroup;
    let mut groups = vec![MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    if routes {
        groups.extend([MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route]);
    }
    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    // what changed between the first listing and this
    if inputs.send(Input::Links).await.is_err() {
        return Ok(());
    }
    while messages.next().await.is_some() {
        // a burst is one change
        while let Ok(Some(_)) =
            tokio::time::timeout(std::time::Duration::from_millis(20), messages.next()).await
        {}
        if inputs.send(Input::Links).await.is_err() {
            return Ok(());
        }
    }
    anyhow::bail!("the kernel closed the connection")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, has_address: bool, has_default_route: bool) -> Link {
        Link { index, name: name.into(), ethernet: true, has_address, has_default_route }
    }

    fn chosen(links: &[Link], outer: Option<&[&str]>, inner: Option<&[&str]>) -> Vec<(u32, Role)> {
        let owned = |names: Option<&[&str]>| {
            names.map(|names| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())
        };
        (choose(links, owned(outer).as_deref(), owned(inner).as_deref()).into_iter())
            .map(|(device, role)| (device.index, role))
            .collect()
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
}
