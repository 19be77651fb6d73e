"""What stands in front of an application where nginx is the access gateway (`auth_request`): a login, a session of its
own, and its end by logout, by time and by an administrator. It does what such services do, and so it never sees the
application's cookies. For the tests alone: it believes everybody's name.

    gunicorn access:application        ACCESS_IDLE: seconds
"""

import os
import secrets
import threading
import time
from html import escape
from http.cookies import SimpleCookie
from urllib.parse import parse_qs

IDLE = float(os.environ["ACCESS_IDLE"])
COOKIE = "__Host-access"
PAGE = """<!doctype html><html lang="en"><title>{title}</title>
<style>body{{font:16px sans-serif;max-width:22em;margin:4em auto}}label,input,button{{display:block;margin:.5em 0}}</style>
<h1>{title}</h1>{body}"""
FORM = """<form method="post" action="/access/login"><input type="hidden" name="to" value="{to}">
<label>User name <input name="username" autocomplete="username" required></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Sign in</button></form>"""

lock = threading.Lock()
sessions = {}


def alive(token):
    """The name of whoever has this token; to ask is to use it."""
    now = time.monotonic()
    with lock:
        for over in [one for one, (_, seen) in sessions.items() if now - seen > IDLE]:
            del sessions[over]
        if token not in sessions:
            return None
        name, _ = sessions[token]
        sessions[token] = (name, now)
        return name


def application(environ, start_response):
    path = environ["PATH_INFO"]
    morsel = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
    token = morsel.value if morsel else ""

    def answer(status, title="", body="", fields=()):
        text = PAGE.format(title=title, body=body).encode() if title else b""
        kind = ("Content-Type", "text/html; charset=utf-8")
        start_response(status, [kind, ("Content-Length", str(len(text))), ("Cache-Control", "no-store"), *fields])
        return [text]

    if path == "/access/check":
        return answer("204 No Content" if alive(token) else "401 Unauthorized")
    if path == "/access/login" and environ["REQUEST_METHOD"] == "GET":
        to = parse_qs(environ.get("QUERY_STRING", "")).get("to", ["/"])[0]
        return answer("200 OK", "Sign in", FORM.format(to=escape(to)))
    if path == "/access/login":
        form = parse_qs(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode())
        token = secrets.token_urlsafe(32)
        with lock:
            sessions[token] = (form["username"][0], time.monotonic())
        cookie = f"{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Lax"
        return answer("303 See Other", fields=[("Location", form["to"][0]), ("Set-Cookie", cookie)])
    if path == "/AGLogout":
        with lock:
            sessions.pop(token, None)
        gone = f"{COOKIE}=; Path=/; Secure; HttpOnly; Max-Age=0"
        return answer("200 OK", "Signed out", "<p>Your session is over.</p>", [("Set-Cookie", gone)])
    # not served to browsers: nginx passes on nothing below /control/
    if path == "/control/sessions":
        alive("")
        names = [name for name, _ in list(sessions.values())]
        return answer("200 OK", "Sessions", escape(" ".join(names)) or "none")
    if path.startswith("/control/end/"):
        with lock:
            for one in [one for one, (name, _) in sessions.items() if name == path.removeprefix("/control/end/")]:
                del sessions[one]
        return answer("204 No Content")
    return answer("404 Not Found", "Not found")
