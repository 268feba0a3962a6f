// What the tests of the page stand on: a data-plane process, a wire between it and the browser that can be cut, a browser.

import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile, cp } from "node:fs/promises";
import http from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import readline from "node:readline";
import { fileURLToPath, pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const START_TIMEOUT_MS = 20_000;

/** Waits until `check` gives something truthy. */
export async function until(what, check, timeoutMs = 60_000) {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

/** One data-plane process on ports of the loopback. */
export class Gateway {
  #child = null;
  #folder;
  #config;

  /** Starts one. `config` is its configuration without listeners. */
  static async start(config) {
    const gateway = new Gateway();
    gateway.#folder = await mkdtemp(path.join(tmpdir(), "chatgateway-page-"));
    gateway.#config = config;
    gateway.ports = { http: 0, grpc: 0, admin: 0 };
    await gateway.startAgain();
    return gateway;
  }

  /** Starts it, on the ports that it had before. */
  async startAgain() {
    const file = path.join(this.#folder, "config.yaml");
    const listeners = { bind: "127.0.0.1", httpPort: this.ports.http, grpcPort: this.ports.grpc, adminPort: this.ports.admin };
    // JSON is YAML.
    await writeFile(file, JSON.stringify({ ...this.#config, listeners, log: { format: "json" } }));
    this.#child = spawn(process.env.CHATGATEWAY_DATAPLANE, ["run", "--config", file], { stdio: ["ignore", "pipe", "pipe"] });
    this.exited = new Promise((done) => this.#child.once("exit", done));
    const said = [];
    const ready = new Promise((done) => {
      for (const stream of [this.#child.stdout, this.#child.stderr]) {
        readline.createInterface({ input: stream }).on("line", (line) => {
          said.push(line);
          const ports = readyLine(line);
          if (ports) done(ports);
        });
      }
    });
    const failed = this.exited.then(() => { throw new Error(`the gateway did not start:\n${said.join("\n")}`); });
    let timer;
    const late = new Promise((_, fail) => {
      timer = setTimeout(() => fail(new Error(`no ready line:\n${said.join("\n")}`)), START_TIMEOUT_MS);
    });
    this.ports = await Promise.race([ready, failed, late]);
    clearTimeout(timer);
    failed.catch(() => {});
    late.catch(() => {});
    await until("ready", async () => (await get(this.ports.admin, "/readyz").catch(() => null))?.status === 200);
  }

  signal(name) {
    this.#child.kill(name);
  }

  async kill() {
    this.signal("SIGKILL");
    await this.exited;
  }

  /** The session as the server has it. */
  async session(id) {
    return JSON.parse((await get(this.ports.http, `/v1/sessions/${encodeURIComponent(id)}`)).body);
  }

  async stop() {
    await this.kill();
    await rm(this.#folder, { recursive: true, force: true });
  }
}

// The log line that names the addresses.
function readyLine(line) {
  let entry;
  try {
    entry = JSON.parse(line);
  } catch {
    return null;
  }
  const fields = entry.fields ?? entry;
  if (fields.message !== "ready" || !fields.http) return null;
  const port = (address) => Number(String(address).split(":").pop());
  return { http: port(fields.http), grpc: port(fields.grpc), admin: port(fields.admin) };
}

/** A plain GET. */
export function get(port, where) {
  return new Promise((done, fail) => {
    const request = http.get({ host: "127.0.0.1", port, path: where, timeout: 5_000, agent: false }, (response) => {
      let body = "";
      response.setEncoding("utf8");
      response.on("data", (piece) => { body += piece; });
      response.on("end", () => done({ status: response.statusCode, headers: response.headers, body }));
    });
    request.on("error", fail);
    request.on("timeout", () => request.destroy(new Error("timeout")));
  });
}

/** A model server that streams one answer, as fast as it is read. */
export class Model {
  static async start(pieces) {
    const model = new Model();
    model.answer = [...pieces()].join("");
    model.server = http.createServer(async (request, response) => {
      request.resume();
      response.writeHead(200, { "content-type": "text/event-stream" });
      const chunk = (choice) => `data: ${JSON.stringify({ object: "chat.completion.chunk", choices: [{ index: 0, ...choice }] })}\n\n`;
      for (const content of pieces()) {
        if (!response.write(chunk({ delta: { content }, finish_reason: null }))) {
          await new Promise((done) => response.once("drain", done));
        }
      }
      response.end(`${chunk({ delta: {}, finish_reason: "stop" })}data: [DONE]\n\n`);
    });
    await new Promise((done) => model.server.listen(0, "127.0.0.1", done));
    model.port = model.server.address().port;
    return model;
  }

  close() {
    this.server.closeAllConnections();
    this.server.close();
  }
}

/** A wire between browser and gateway: it can be cut, kept cut, and made deaf in the direction of the browser. */
export class Cable {
  #server;
  #pairs = new Set();
  #plugged = true;
  #muted = false;

  static async to(gateway) {
    const cable = new Cable();
    cable.#server = net.createServer((near) => {
      if (!cable.#plugged) return near.destroy();
      const far = net.connect(gateway.ports.http, "127.0.0.1");
      const pair = { near, far };
      cable.#pairs.add(pair);
      near.on("data", (bytes) => far.write(bytes));
      far.on("data", (bytes) => { if (!cable.#muted) near.write(bytes); });
      for (const [one, other] of [[near, far], [far, near]]) {
        one.on("error", () => {});
        one.on("close", () => {
          other.destroy();
          cable.#pairs.delete(pair);
        });
        one.on("end", () => other.end());
      }
      return undefined;
    });
    await new Promise((done) => cable.#server.listen(0, "127.0.0.1", done));
    cable.port = cable.#server.address().port;
    return cable;
  }

  /** Nothing from the gateway reaches the browser any more. */
  mute() {
    this.#muted = true;
  }

  /** Cuts all connections, and lets none be made until `plug`. */
  unplug() {
    this.#plugged = false;
    for (const { near, far } of this.#pairs) {
      near.destroy();
      far.destroy();
    }
  }

  plug() {
    this.#plugged = true;
    this.#muted = false;
  }

  close() {
    this.unplug();
    this.#server.close();
  }
}

/** Starts the browser. */
export function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
}

/** A tab with the page, with words for what a person does there. */
export class Tab {
  /** Problems that the page or the browser reported: none is expected but those of a network that is cut. */
  problems = [];

  static async open(context, port, hash = "") {
    const tab = new Tab();
    tab.page = await context.newPage();
    tab.page.setDefaultTimeout(60_000);
    tab.page.on("pageerror", (error) => tab.problems.push(error.stack));
    tab.page.on("console", (message) => {
      if (message.type() === "error" && !/ERR_|WebSocket|status of 404/.test(message.text())) tab.problems.push(message.text());
    });
    await tab.page.goto(`http://127.0.0.1:${port}/${hash}`);
    return tab;
  }

  get hash() {
    return new URL(this.page.url()).hash;
  }

  get session() {
    return decodeURIComponent(this.hash.slice(1));
  }

  connected() {
    return this.page.waitForSelector('#connection[data-state="connected"]');
  }

  async say(text) {
    await this.page.fill("#message", text);
    await this.page.press("#message", "Enter");
  }

  /** Waits until the n-th turn (from 0) is in that state. */
  state(n, state) {
    return this.page.waitForSelector(`#turns > li:nth-child(${n + 1})[data-state="${state}"]`);
  }

  /** Waits until the n-th turn's answer has at least so many characters. */
  grown(n, characters) {
    const args = [n, characters];
    return this.page.waitForFunction(([at, least]) => {
      const answer = document.querySelector(`#turns > li:nth-child(${at + 1}) .answer`);
      return (answer?.textContent.length ?? 0) >= least;
    }, args, { polling: 10 });
  }

  /** What was said, what was answered, and in which state, of each turn shown. */
  turns() {
    return this.page.$$eval("#turns > li", (items) => items.map((item) => ({
      state: item.dataset.state,
      said: item.querySelector(".said .text").textContent,
      answer: item.querySelector(".answer").textContent,
      note: item.querySelector(".note").textContent,
    })));
  }

  async answer(n) {
    return (await this.turns())[n]?.answer ?? "";
  }

  text(selector) {
    return this.page.textContent(selector);
  }

  waitForWords(selector, pattern) {
    return this.page.waitForFunction(([where, source]) => {
      const words = [...document.querySelectorAll(where)].map((found) => found.textContent).join("\n");
      return new RegExp(source).test(words);
    }, [selector, pattern.source], { polling: 20 });
  }
}

/** A page's modules as this process can load them: the page has no package.json that would call them modules. */
export async function pageModules() {
  const folder = await mkdtemp(path.join(tmpdir(), "chatgateway-modules-"));
  const source = fileURLToPath(new URL("../../dataplane/page", import.meta.url));
  await cp(source, folder, { recursive: true });
  await writeFile(path.join(folder, "package.json"), '{"type":"module"}');
  return {
    load: (name) => import(pathToFileURL(path.join(folder, name))),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

/** Where pictures go. */
export async function screenshotFolder() {
  return process.env.SCREENSHOTS || mkdtemp(path.join(tmpdir(), "chatgateway-screenshots-"));
}
