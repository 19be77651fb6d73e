//! The provider before the whole gateway: its process, the daemon and an application.

use std::os::unix::fs::{PermissionsExt, chown};

use enforcer_tests::enforcer::{Config, quoted};
use enforcer_tests::portal::{Browser, ONE, Page, Portal, USER, WEB_V4};
use nix::unistd::User;

use crate::provider::{Claims, Papers, Place, Provider};

const PORT: u16 = 8443;

/// The gateway with the provider beside it, on the same address.
pub struct World {
    pub provider: Provider,
    pub portal: Portal,
}

impl World {
    pub fn new(name: &str) -> Self {
        Self::with(name, |config| config)
    }

    /// The same with another configuration.
    pub fn with(name: &str, change: impl FnOnce(Config) -> Config) -> Self {
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
        let portal = Portal::with(name, |config| change(config.set("gateway", "oidc", &oidc)));
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
    pub fn log_in(&self, browser: &Browser, user: &str) -> Page {
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
    pub fn log_out(&self, browser: &Browser) {
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
