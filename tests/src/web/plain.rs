//! nginx as the access gateway, with the service that it asks who somebody is (`auth_request`): what is used in the field,
//! and what has the fault.

use std::fs;

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::{BOUND, Process, eventually, output, succeed};
use crate::web::browser::Person;
use crate::web::script::{Ending, Front, sign_in};
use crate::web::{BEHIND_NGINX, PLAIN_V4, Papers, plain_address, python, sources};

/// nginx in the gateway's namespace, and that service.
pub struct Plain {
    gateway: Namespace,
    _nginx: Process,
    _access: Process,
}

impl Plain {
    const ACCESS: &str = "127.0.0.1:9000";

    /// In front of the application at `origin`; whoever does nothing for `idle` seconds is signed out.
    pub fn start(lab: &Lab, papers: &Papers, origin: &str, idle: u32) -> Self {
        plain_address(lab);
        let folder = lab.shared().scratch("nginx");
        let mut gunicorn = lab.gateway.command(&python("gunicorn"));
        gunicorn.args(["--bind", Self::ACCESS, "--chdir"]).arg(sources()).arg("access:application");
        gunicorn.arg("--worker-tmp-dir").arg(&folder).arg("--no-control-socket");
        gunicorn.env("ACCESS_IDLE", idle.to_string()).env("PYTHONDONTWRITEBYTECODE", "1");
        let access = Process::start("access", gunicorn, &lab.work().join("access.log"), None);

        let conf = folder.join("nginx.conf");
        let text = format!(
            "daemon off; pid {f}/pid; user nobody nogroup; worker_processes 1; error_log stderr warn;\n\
             events {{}}\nhttp {{\naccess_log off; {TEMPORARY}\n\
             map $http_upgrade $hop {{ default upgrade; '' ''; }}\n\
             server {{\nlisten {PLAIN_V4}:443 ssl http2; server_name {BEHIND_NGINX};\n\
             ssl_certificate {certificate}; ssl_certificate_key {key};\n\
             location = /access/check {{ internal; proxy_pass http://{access}; proxy_pass_request_body off;\n\
             proxy_set_header Content-Length ''; }}\n\
             location = /access/login {{ proxy_pass http://{access}; }}\n\
             location = /AGLogout {{ proxy_pass http://{access}; }}\n\
             location / {{ auth_request /access/check; error_page 401 = @login; proxy_pass {origin};\n\
             proxy_http_version 1.1; proxy_set_header Host $host; proxy_set_header X-Forwarded-Proto $scheme;\n\
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $hop; }}\n\
             location @login {{ return 302 /access/login?to=$request_uri; }}\n}}\n}}\n",
            f = folder.display(),
            certificate = papers.certificate(),
            key = papers.key(),
            access = Self::ACCESS,
        );
        fs::write(&conf, text).expect("nginx's configuration");
        let mut nginx = lab.gateway.command("/usr/sbin/nginx");
        nginx.arg("-p").arg(&folder).arg("-e").arg("stderr").arg("-c").arg(conf);
        let nginx = Process::start("nginx", nginx, &lab.work().join("nginx.log"), None);
        let mut new = Self { gateway: lab.gateway.clone(), _nginx: nginx, _access: access };
        eventually("nginx answers, and so does the service behind it", BOUND, || {
            for process in [&mut new._nginx, &mut new._access] {
                if let Some(status) = process.exited() {
                    panic!("it ended ({status}):\n{}", process.log());
                }
            }
            let mut curl = new.gateway.command("curl");
            curl.args(["-sS", "-k", "-o", "/dev/null", "-w", "%{http_code}", "-m", "10"]);
            curl.args(["-H", &format!("Host: {BEHIND_NGINX}"), &format!("https://{PLAIN_V4}/access/login")]);
            (output(curl, "").stdout == "200").then_some(())
        });
        new
    }

    /// Asks the service what only an administrator may.
    fn control(&self, path: &str) -> String {
        let mut curl = self.gateway.command("curl");
        curl.args(["-sS", "--fail", "-m", "10", &format!("http://{}/control/{path}", Self::ACCESS)]);
        succeed(curl, "")
    }
}

/// Its folders for bodies: below the one that it was started with.
const TEMPORARY: &str = "client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; \
                         uwsgi_temp_path uwsgi; scgi_temp_path scgi;";

impl Front for Plain {
    fn host(&self) -> &str {
        BEHIND_NGINX
    }

    fn name(&self) -> &'static str {
        "nginx"
    }

    fn sign_in(&self, person: &Person<'_>, user: &str) {
        sign_in(person, user, "any, it is not looked at");
    }

    fn end(&self, person: &Person<'_>, user: &str, ending: Ending) {
        match ending {
            Ending::Logout => {
                person.goto(&format!("https://{BEHIND_NGINX}/AGLogout"));
            }
            Ending::Idle => eventually(&format!("{user} was idle for too long"), BOUND * 2, || {
                (!self.control("sessions").contains(user)).then_some(())
            }),
            Ending::Administrator => {
                self.control(&format!("end/{user}"));
            }
        }
    }
}
