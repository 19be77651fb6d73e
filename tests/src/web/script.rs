//! What happens at a browser that several people use, whatever stands before the application. The same for a gateway that
//! has the fault and for one that has not.

use std::path::Path;

use crate::ocserv::PASSWORD;
use crate::web::browser::{Browser, Cookie, Person};

/// The fields of a gateway's login page; Django's admin has them as well, so which page it is has to be asked first.
const USER_FIELD: &str = "input[autocomplete=username]";
const PASSWORD_FIELD: &str = "input[type=password]";
/// Django's own login form, and what its admin shows once somebody is logged in.
const DJANGO_FORM: &str = "#login-form";
const DJANGO_USER: &str = "#user-tools strong";
/// Django's session cookie.
pub const SESSION: &str = "sessionid";

/// How a session at the gateway ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    Logout,
    Idle,
    /// An administrator ends it from the shell.
    Administrator,
}

impl Ending {
    pub const ALL: [Ending; 3] = [Ending::Logout, Ending::Idle, Ending::Administrator];

    pub fn name(self) -> &'static str {
        match self {
            Ending::Logout => "logout",
            Ending::Idle => "idle",
            Ending::Administrator => "administrator",
        }
    }
}

/// An access gateway.
pub trait Front {
    /// Under which name browsers ask for the application.
    fn host(&self) -> &str;

    fn name(&self) -> &'static str;

    /// Signs somebody in whose browser shows the gateway's own login page.
    fn sign_in(&self, person: &Person<'_>, user: &str);

    /// Ends this user's session at the gateway, and returns when it is over.
    fn end(&self, person: &Person<'_>, user: &str, ending: Ending);
}

/// What the admin's page shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shown {
    /// The gateway's login page.
    Gateway,
    /// Django's login form.
    Form,
    /// The admin, as this user.
    Admin(String),
}

/// What was seen, from the first to the last.
#[derive(Debug)]
pub struct Story {
    /// What the application showed alice after she logged in there.
    pub alice: Shown,
    /// Of HTTP, between browser and gateway.
    pub protocol: String,
    /// Django's session cookie in the browser, as the gateway gave it.
    pub cookie: Cookie,
    /// What the browser showed first after the end.
    pub after: Shown,
    /// What it showed bob, after he had signed in at the gateway, and nowhere else.
    pub bob: Shown,
    /// Django's cookies that were then in the browser and had been before.
    pub stale: Vec<String>,
    /// What bob saw after alice's cookie was put back into the browser.
    pub stolen: Shown,
}

/// One story: alice signs in at the gateway and logs in at the application; her session at the gateway ends; bob signs in
/// at the gateway, in the same browser. `told` hears each step as it was done; screenshots go into `pictures`, if any.
pub fn shared_browser(
    browser: &Browser,
    front: &dyn Front,
    ending: Ending,
    pictures: Option<&Path>,
    told: &mut dyn FnMut(&str, String),
) -> Story {
    let picture = |person: &Person<'_>, number: u8, what: &str| {
        if let Some(folder) = pictures {
            let name = format!("{}-{}-{number}-{what}.png", front.name(), ending.name());
            person.screenshot(&folder.join(name));
        }
    };
    let person = browser.open(&format!("{}-{}", front.name(), ending.name()));
    let admin = format!("https://{}/admin/", front.host());

    let first = person.goto(&admin);
    assert_eq!(shown(&person), Shown::Gateway, "{first:?}");
    front.sign_in(&person, "alice");
    assert_eq!(shown(&person), Shown::Form, "a fresh browser");
    log_in(&person, "alice");
    let alice = shown(&person);
    let protocol = person.goto(&admin).protocol;
    picture(&person, 1, "alice");
    told("alice", format!("signs in at the gateway, logs in at the application: sees {}", alice.said()));
    let before = person.cookies(&admin);
    let cookie =
        before.iter().find(|cookie| cookie.name == SESSION).expect("Django's session cookie").clone();

    front.end(&person, "alice", ending);
    told("her session", format!("at the gateway ends: {}", ending.said()));

    person.goto(&admin);
    let after = shown(&person);
    picture(&person, 2, "after");
    told("the browser", format!("then shows {}", after.said()));
    front.sign_in(&person, "bob");
    let bob = shown(&person);
    picture(&person, 3, "bob");
    told("bob", format!("signs in at the gateway, in the same browser: sees {}", bob.said()));
    let is_stale = |now: &Cookie| before.iter().any(|old| (&old.name, &old.value) == (&now.name, &now.value));
    let stale = person.cookies(&admin).into_iter().filter(is_stale).map(|cookie| cookie.name).collect();

    person.put(&cookie);
    person.goto(&admin);
    let stolen = shown(&person);
    told("her cookie", format!("put back into his browser: he sees {}", stolen.said()));
    Story { alice, protocol, cookie, after, bob, stale, stolen }
}

/// Fills in the login page of a gateway.
#[track_caller]
pub fn sign_in(person: &Person<'_>, user: &str, password: &str) {
    person.fill(USER_FIELD, user);
    person.fill(PASSWORD_FIELD, password);
    person.submit("button");
}

/// Logs in at Django's form.
#[track_caller]
pub fn log_in(person: &Person<'_>, user: &str) {
    person.fill("#id_username", user);
    person.fill("#id_password", PASSWORD);
    person.submit("#login-form input[type=submit]");
}

/// Which page it is.
#[track_caller]
pub fn shown(person: &Person<'_>) -> Shown {
    if person.has(DJANGO_USER) {
        Shown::Admin(person.text(DJANGO_USER).to_lowercase())
    } else if person.has(DJANGO_FORM) {
        Shown::Form
    } else {
        assert!(person.has(PASSWORD_FIELD), "no page that is known: {}", person.text("body"));
        Shown::Gateway
    }
}

impl Shown {
    pub fn said(&self) -> String {
        match self {
            Shown::Gateway => "the gateway's login page".to_owned(),
            Shown::Form => "the application's login form".to_owned(),
            Shown::Admin(user) => format!("the application as {user}"),
        }
    }
}

impl Ending {
    fn said(self) -> &'static str {
        match self {
            Ending::Logout => "she logs out there",
            Ending::Idle => "she was idle for too long",
            Ending::Administrator => "an administrator ends it",
        }
    }
}
