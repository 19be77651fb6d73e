//! The provider before the whole gateway: its process, the daemon, an application, and curl as the browser.

use std::os::unix::fs::{PermissionsExt, chown};

use enforcer_tests::enforcer::quoted;
use enforcer_tests::portal::{Browser, ONE, Page, Portal, USER, WEB_V4};
use enforcer_tests::process::{BOUND, eventually};
use nix::unistd::User;

use crate::provider::{Claims, Papers, Place, Provider};

const PORT: u16 = 8443;

/// The gateway with the provider beside it, on the same address.
struct World {
    provider: Provider,
    portal: Portal,
}

impl World {
    fn new(name: &str) -> Self {
        let host = WEB_V4.to_string();
        let papers = Papers::new(&host);
        let secret = papers.file("secret");
        std::fs::write(&secret, "the secret of ES256: +&%=\n").unwrap();
        // the gateway reads it as itself
        let user = User::from_name(USER).unwrap().unwrap();
        chown(&secret, None, Some(user.gid.as_raw())).unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).unwrap();
        std::fs::set_permissions(papers.file(""), PermissionsExt::from_mode(0o755)).unwrap();
        let file = |name: &str| quoted(&papers.file(name).display().to_string());
        let oidc = format!(
            "{{ issuer = \"https://{host}:{PORT}\", client-id = \"ES256\", client-secret-file = {}, ca = {} }}",
            file("secret"),
            file("ca.pem")
        );
        let portal = Portal::with(name, |config| config.set("gateway", "oidc", &oidc));
        // the provider asks for the gateway by its name, and believes its certificate
        let hosts = papers.file("hosts");
        std::fs::write(&hosts, format!("{host} {ONE}\n")).unwrap();
        let mut node = portal.scene.lab.gateway.command("unshare");
        node.args(["-m", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec node \"$@\""]).arg(hosts);
        node.env("NODE_EXTRA_CA_CERTS", portal.file("crt.pem"));
        let place = Place {
            address: &format!("{host}:{PORT}"),
            host: &host,
            back: &format!("https://{ONE}/.enforcer/oidc/callback"),
            backchannel: &format!("https://{ONE}/.enforcer/oidc/logout"),
            claims: Claims::Userinfo,
        };
        Self { provider: Provider::run(node, papers, &place), portal }
    }

    /// Logs in by way of the provider, and comes to the application.
    #[track_caller]
    fn log_in(&self, browser: &Browser, user: &str) -> Page {
        let page = browser.get(&format!("https://{ONE}/first?a=b"));
        assert!(page.is_login(), "{page:?}");
        let link = page.body.split("href=\"").find(|link| link.starts_with("/.enforcer/oidc/begin"));
        let link = link.unwrap_or_else(|| panic!("no link to the provider: {page:?}"));
        let link = link.split('"').next().unwrap().replace("&amp;", "&");
        let mut page = self.follow(browser, browser.once(&format!("https://{ONE}{link}")));
        while page.url.starts_with(&self.provider.issuer()) {
            page = self.submit(browser, &page, &[("login", user), ("password", "any")]);
        }
        assert!(page.is_of_the_app(), "{user} is not logged in: {page:?}\n{}", self.portal.log());
        assert!(page.body.starts_with("GET /first?a=b "), "{}", page.body);
        assert!(page.body.contains(&format!("x-forwarded-user: {user}")), "{}", page.body);
        page
    }

    /// Ends the session at the provider.
    fn log_out(&self, browser: &Browser) {
        let page = browser.get(&format!("{}/session/end?client_id=ES256", self.provider.issuer()));
        self.submit(browser, &page.expect(200), &[("logout", "yes")]);
    }

    fn submit(&self, browser: &Browser, page: &Page, more: &[(&str, &str)]) -> Page {
        let action = page.body.split_once("action=\"").unwrap_or_else(|| panic!("no form: {page:?}")).1;
        let action = action.split('"').next().unwrap().replace("&amp;", "&");
        let hidden = page.hidden();
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let fields: Vec<String> =
            hidden.into_iter().chain(more).map(|(name, value)| format!("{name}={value}")).collect();
        let mut arguments = Vec::new();
        for field in &fields {
            arguments.extend(["--data-urlencode", field]);
        }
        let action = self.whole(&action);
        arguments.push(&action);
        self.follow(browser, browser.ask(&arguments))
    }

    /// Where that leads. The provider's own redirects are paths.
    fn follow(&self, browser: &Browser, mut page: Page) -> Page {
        for _ in 0..20 {
            let Some(there) = page.field("location").filter(|_| (300..400).contains(&page.status)) else {
                return page;
            };
            page = browser.once(&self.whole(there));
        }
        panic!("it leads nowhere: {page:?}");
    }

    fn whole(&self, address: &str) -> String {
        if address.starts_with('/') {
            format!("{}{address}", self.provider.issuer())
        } else {
            address.to_owned()
        }
    }
}

/// R1, R2, R3, R4: a logout at the provider ends the session at the gateway: what it has under way, and its cookies. Nobody
/// else's. And the same person may come again, with her password.
#[test]
fn r1_r2_r3_r4_a_logout_at_the_provider_ends_the_session_at_the_gateway() {
    let world = World::new("gw-oidc");
    let portal = &world.portal;
    let (alice, bob) = (portal.browser("alice"), portal.browser("bob"));
    for (browser, user) in [(&alice, "alice"), (&bob, "bob")] {
        world.log_in(browser, user);
        browser.get(&format!("https://{ONE}/set/sid/of-{user}")).expect(200);
        assert_eq!(browser.get(&format!("https://{ONE}/")).cookies(), format!("sid=of-{user}"));
        assert_eq!(portal.sessions(user), 1);
    }
    let stolen = alice.copy(&portal.scene.bob.namespace, "thief");
    let mut hers = alice.download(&format!("https://{ONE}/stream"));
    let _his = bob.download(&format!("https://{ONE}/stream"));
    eventually("both download", BOUND, || (portal.one.streams() == 2).then_some(()));

    world.log_out(&alice);
    hers.wait(BOUND);
    eventually("her session is over", BOUND, || (portal.sessions("alice") == 0).then_some(()));
    let had = bob.downloaded();
    eventually("his goes on", BOUND, || (bob.downloaded() > had).then_some(()));
    for browser in [&alice, &stolen] {
        assert!(browser.get(&format!("https://{ONE}/")).is_login());
    }
    assert_eq!(bob.get(&format!("https://{ONE}/")).cookies(), "sid=of-bob");
    assert!(!world.provider.log().contains("backchannel.error"), "{}", world.provider.log());
    let page = world.log_in(&alice, "alice");
    assert_eq!(page.cookies(), "", "R4; and her former cookie opens no more");
    assert!(stolen.get(&format!("https://{ONE}/")).is_login());
}

/// R2, R5: who was logged out at the gateway is not let in again by the provider's own session; and a session is ended by
/// the provider also after a restart of the gateway.
#[test]
fn r2_r5_the_provider_ends_a_session_after_a_restart_of_the_gateway() {
    let mut world = World::new("gw-oidc-anew");
    let browser = world.portal.browser("browser");
    world.log_in(&browser, "alice");
    browser.get(&format!("https://{ONE}/AGLogout")).expect(200);
    assert_eq!(world.portal.sessions("alice"), 0);
    // the provider has a session of its own in this browser: it asks all the same, and it is bob who comes
    world.log_in(&browser, "bob");
    assert_eq!((world.portal.sessions("alice"), world.portal.sessions("bob")), (0, 1));

    world.portal.kill();
    world.portal.start();
    assert!(browser.get(&format!("https://{ONE}/")).is_of_the_app(), "the session goes on");
    world.log_out(&browser);
    eventually("his session is over", BOUND, || (world.portal.sessions("bob") == 0).then_some(()));
    assert!(browser.get(&format!("https://{ONE}/")).is_login());
}
