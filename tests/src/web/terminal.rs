//! A terminal of Jupyter's in somebody's page: a shell on the LAN host, on a WebSocket through the gateway.

use serde_json::json;

use crate::ocserv::PASSWORD;
use crate::web::APP;
use crate::web::browser::Person;

/// An open terminal. Its socket lives in the page.
pub struct Terminal<'a> {
    person: &'a Person<'a>,
    /// Where its WebSocket is.
    pub path: String,
}

impl<'a> Terminal<'a> {
    /// Logs in at Jupyter, and opens a terminal. Whoever it is has signed in at the gateway.
    #[track_caller]
    pub fn open(person: &'a Person<'a>) -> Self {
        person.goto(&format!("https://{APP}/login"));
        person.fill("#password_input", PASSWORD);
        person.submit("#login_submit");
        let name = person.run(OPEN);
        let path = format!("/terminals/websocket/{}", name.as_str().expect("a terminal's name"));
        Self { person, path }
    }

    /// Types a line. Nobody says whether it arrives.
    #[track_caller]
    pub fn types(&self, line: &str) {
        self.person.run(&format!("socket.send({})", json!(typed(line))));
    }

    /// Waits until this was shown.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.person.wait(&format!("said.includes({})", json!(text)));
    }

    /// Waits until the socket is closed.
    #[track_caller]
    pub fn ends(&self) {
        self.person.wait("over");
    }

    #[track_caller]
    pub fn is_open(&self) -> bool {
        self.person.run("return !over && socket.readyState === WebSocket.OPEN") == true
    }
}

/// The message to a terminal that types a line.
pub fn typed(line: &str) -> String {
    json!(["stdin", format!("{line}\r")]).to_string()
}

/// Jupyter wants its cookie `_xsrf` back in a header, so the page's script must be able to read it.
const OPEN: &str = r#"
const [, xsrf] = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
const answer = await fetch("/api/terminals", { method: "POST", headers: { "X-XSRFToken": xsrf } });
if (!answer.ok) throw new Error(`no terminal: ${answer.status} ${await answer.text()}`);
const { name } = await answer.json();
globalThis.said = "";
globalThis.over = false;
globalThis.socket = new WebSocket(`wss://${location.host}/terminals/websocket/${name}`);
socket.addEventListener("message", ({ data }) => {
  const [kind, text] = JSON.parse(data);
  if (kind === "stdout") said += text;
});
socket.addEventListener("close", () => { over = true; });
await new Promise((open, fail) => {
  socket.addEventListener("open", open);
  socket.addEventListener("error", () => fail(new Error("the WebSocket does not open")));
});
return name;
"#;
