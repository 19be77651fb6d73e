// A real browser that a test drives: one order a line on standard input, one answer a line on standard output.
//
//   node driver.mjs MODULES        MODULES: the folder in which npm installed what package.json names
//
// An order is {"do": NAME, ...}; the answer is {"ok": VALUE} or {"error": TEXT}. The orders are the functions of
// `orders` below. Everything ends with standard input.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import http2 from "node:http2";
import { readFileSync } from "node:fs";

const require = createRequire(process.argv[2] + "/");
const { chromium } = require("playwright-core");

/** Nothing takes longer on a busy machine; only a failing test waits for it. */
const BOUND = 45_000;

let browser;
/** By the name that the test gave them: a person's browser is a context of its own, with its own cookies. */
const pages = new Map();
/** Names of further pages in somebody's browser. */
const tabs = new Set();
/** HTTP/2 connections of this program's own, each with what came on each of its streams. */
const connections = new Map();

function known(map, name) {
  const found = map.get(name);
  if (!found) throw new Error(`there is no ${name}`);
  return found;
}

/** What a test sees of a page that was loaded. */
async function seen(page, response) {
  const navigation = await page.evaluate(
    () => performance.getEntriesByType("navigation").at(-1)?.nextHopProtocol ?? "");
  return { url: page.url(), status: response?.status() ?? 0, title: await page.title(), protocol: navigation };
}

/** Begins a stream, and keeps what comes on it. */
function begin(it, label, fields) {
  // by itself node adds the port, which browsers leave out where it is the usual one
  const request = it.session.request({ ":authority": it.host, ...fields }, { endStream: false });
  const kept = { request, bytes: 0, text: "", over: null };
  it.streams.set(label, kept);
  request.setEncoding("latin1");
  request.on("data", (text) => { kept.bytes += text.length; kept.text = (kept.text + text).slice(-8192); });
  request.on("error", (error) => { kept.over ??= String(error.message); });
  request.on("close", () => { kept.over ??= `closed with ${request.rstCode}`; });
  const answered = new Promise((resolve, reject) => {
    request.once("response", (fields) => resolve({ status: fields[":status"], fields }));
    request.once("error", reject);
    request.once("close", () => reject(new Error("the stream ended without an answer")));
  });
  return { request, answered };
}

/** A text in one WebSocket frame of a client: masked, as it has to be, with zeros. */
function frame(text) {
  const payload = Buffer.from(text);
  if (payload.length > 125) throw new Error("the text is too long for a short frame");
  return Buffer.concat([Buffer.from([0x81, 0x80 | payload.length, 0, 0, 0, 0]), payload]);
}

const orders = {
  /** Starts Chromium. `hosts`: names and the address that each of them has; `keys`: base64 of the SHA-256 of each public
      key that is believed: HTTP/2 and Clear-Site-Data need a connection without a certificate's error, so errors are
      not just overlooked. */
  async start({ chromium: path, hosts, keys }) {
    const rules = Object.entries(hosts).map(([host, address]) => `MAP ${host} ${address}`);
    browser = await chromium.launch({
      executablePath: path,
      // the tests run as root, for their namespaces, and as root Chromium has no sandbox: for that alone
      chromiumSandbox: false,
      args: [
        `--host-resolver-rules=${[...rules, "MAP * ~NOTFOUND"].join(",")}`,
        `--ignore-certificate-errors-spki-list=${keys.join(",")}`,
        "--disable-gpu",
        "--disable-quic",
      ],
    });
    return browser.version();
  },
  /** A browser of somebody: no cookies, one page. */
  async open({ page: name }) {
    const context = await browser.newContext({ viewport: { width: 1000, height: 640 } });
    context.setDefaultTimeout(BOUND);
    pages.set(name, await context.newPage());
  },
  /** A further page in the browser of somebody. */
  async tab({ page: name, of }) {
    pages.set(name, await known(pages, of).context().newPage());
    tabs.add(name);
  },
  async close({ page: name }) {
    const page = known(pages, name);
    await (tabs.delete(name) ? page : page.context()).close();
    pages.delete(name);
  },
  async goto({ page: name, url }) {
    const page = known(pages, name);
    return seen(page, await page.goto(url));
  },
  async has({ page: name, selector }) {
    return (await known(pages, name).locator(selector).count()) > 0;
  },
  async text({ page: name, selector }) {
    return known(pages, name).locator(selector).first().innerText();
  },
  async fill({ page: name, selector, value }) {
    await known(pages, name).locator(selector).first().fill(value);
  },
  /** Clicks what leads to another page, and waits for that. */
  async submit({ page: name, selector }) {
    const page = known(pages, name);
    const [response] = await Promise.all([
      page.waitForNavigation(),
      page.locator(selector).first().click(),
    ]);
    return seen(page, response);
  },
  /** The cookies that this person's browser has for an address. */
  async cookies({ page: name, url }) {
    return known(pages, name).context().cookies(url);
  },
  async add_cookies({ page: name, cookies }) {
    await known(pages, name).context().addCookies(cookies);
  },
  /** Runs a script in the page, as the body of an async function. */
  async run({ page: name, script }) {
    return known(pages, name).evaluate(`(async () => {\n${script}\n})()`);
  },
  /** Waits until a script in the page, an expression, is true. */
  async wait({ page: name, script }) {
    await known(pages, name).waitForFunction(script, null, { timeout: BOUND, polling: 20 });
  },
  async screenshot({ page: name, file }) {
    await known(pages, name).screenshot({ path: file });
  },

  /** An HTTP/2 connection that believes this authority alone; no browser puts two people on one. */
  async connect({ connection: name, host, address, authority }) {
    const session = http2.connect(`https://${host}`, {
      ca: readFileSync(authority),
      lookup: (_host, options, done) =>
        options.all ? done(null, [{ address, family: 4 }]) : done(null, address, 4),
    });
    const it = { host, session, streams: new Map(), over: null };
    // an error of the connection is also one of its streams, whom it is told
    session.on("error", (error) => { it.over ??= String(error); });
    session.on("close", () => { it.over ??= "closed"; });
    await new Promise((resolve, reject) => {
      // what the other side can do is known with its settings
      session.once("remoteSettings", resolve);
      session.once("error", reject);
    });
    connections.set(name, it);
    return session.alpnProtocol;
  },
  /** Asks for something, and gives status and fields as soon as they are there. */
  async ask({ connection, stream, path, headers }) {
    const { request, answered } = begin(known(connections, connection), stream, { ":path": path, ...headers });
    request.end();
    return answered;
  },
  /** Opens a WebSocket on a stream (RFC 8441). */
  async socket({ connection, stream, path, headers }) {
    const fields = { ":method": "CONNECT", ":protocol": "websocket", ":path": path, "sec-websocket-version": "13" };
    return begin(known(connections, connection), stream, { ...fields, ...headers }).answered;
  },
  /** Sends a text on a WebSocket. Nobody says whether it arrives. */
  async send({ connection, stream, text }) {
    const { request } = known(known(connections, connection).streams, stream);
    if (!request.destroyed) request.write(frame(text));
  },
  /** What a stream has brought up to now (of a WebSocket: with its frames' heads), and how it ended if it has. */
  async stream({ connection, stream }) {
    const it = known(connections, connection);
    const { request, ...kept } = known(it.streams, stream);
    return { ...kept, connection: it.over };
  },
};

async function answer(line) {
  try {
    const { do: name, ...order } = JSON.parse(line);
    const work = Object.hasOwn(orders, name) ? orders[name](order) : Promise.reject(new Error(`no order ${name}`));
    return { ok: (await work) ?? null };
  } catch (error) {
    return { error: error?.message ?? String(error) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await answer(line)) + "\n");
}
for (const { session } of connections.values()) session.destroy();
await browser?.close();
