// The connection: one WebSocket at a time, opened again with a jittered backoff whenever it ends. When the server says that
// it goes away, the next connection is made before the old one is left, so a running answer never pauses.

export const SUBPROTOCOL = "chatgateway.v1";

const HELLO_WITHIN_MS = 10_000;
const PONG_WITHIN_MS = 10_000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 15_000;
const STEADY_AFTER_MS = 5_000;

/** How long to wait before attempt number `attempt` (from 0). `random` is within 0..1. */
export function backoffMs(attempt, random) {
  const full = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** Math.min(attempt, 10));
  return Math.round(full / 2 + (full / 2) * random);
}

/** Whether a client may connect again after this close code. */
export function mayReconnect(code) {
  return code !== 1008 && !(code >= 3500 && code <= 3999);
}

export class Link {
  #hooks;
  #clock;
  #current = null;
  #next = null;
  #timer = 0;
  #attempt = 0;
  #goneAway = null;
  #stopped = true;

  /**
   * @param {object} hooks
   * @param {() => WebSocket} hooks.dial opens a socket
   * @param {(send: (frame: object) => void, hello: object) => void} hooks.up
   * @param {(closed: {code: number, reason: string}) => void} hooks.down
   * @param {(frame: object) => void} hooks.frame any frame after `hello`
   * @param {(state: {name: string, untilMs?: number, code?: number, reason?: string}) => void} hooks.state
   *   `connecting`, `connected`, `waiting`, `leaving` or `refused`
   * @param {object} [clock] for tests
   */
  constructor(hooks, clock = {}) {
    this.#hooks = hooks;
    this.#clock = {
      now: clock.now ?? (() => Date.now()),
      random: clock.random ?? Math.random,
      setTimeout: clock.setTimeout ?? ((run, ms) => setTimeout(run, ms)),
      clearTimeout: clock.clearTimeout ?? ((timer) => clearTimeout(timer)),
    };
  }

  /** Connects, unless there is or will be a connection. */
  start() {
    if (!this.#stopped) return;
    this.#stopped = false;
    this.#attempt = 0;
    this.#dial();
  }

  /** Connects at once instead of at the end of the wait. */
  hurry() {
    if (this.#stopped) return this.start();
    if (!this.#current && !this.#next) this.#dial();
    else this.#current?.probe();
    return undefined;
  }

  #dial() {
    this.#clock.clearTimeout(this.#timer);
    if (!this.#current) this.#hooks.state({ name: "connecting" });
    const wire = new Wire(this.#hooks.dial(), this.#clock, {
      hello: (hello) => this.#ready(wire, hello),
      frame: (frame) => this.#frame(wire, frame),
      closed: (closed) => this.#closed(wire, closed),
    });
    this.#next = wire;
  }

  #ready(wire, hello) {
    const old = this.#current;
    this.#current = wire;
    this.#next = null;
    this.#goneAway = null;
    if (old) {
      this.#hooks.down({ code: 1000, reason: "" });
      old.leave();
    }
    this.#hooks.state({ name: "connected" });
    this.#hooks.up((frame) => wire.send(frame), hello);
  }

  #frame(wire, frame) {
    if (wire !== this.#current) return;
    if (frame.type === "go_away") return this.#goAway(frame);
    this.#hooks.frame(frame);
  }

  #goAway(frame) {
    const wait = Math.max(0, Number(frame.reconnect_after_ms) || 0) + 200 * this.#clock.random();
    this.#goneAway = this.#clock.now() + wait;
    this.#hooks.state({ name: "leaving", untilMs: this.#goneAway });
    this.#hooks.frame(frame);
    this.#again(wait);
  }

  #again(ms) {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(() => {
      if (!this.#stopped && !this.#next) this.#dial();
    }, ms);
  }

  #closed(wire, closed) {
    if (wire === this.#next) this.#next = null;
    else if (wire === this.#current) this.#current = null;
    else return;
    if (wire.upSince !== null) this.#hooks.down(closed);
    if (!mayReconnect(closed.code)) {
      this.#stopped = true;
      this.#clock.clearTimeout(this.#timer);
      this.#next?.leave();
      this.#next = null;
      this.#hooks.state({ name: "refused", ...closed });
      return;
    }
    if (this.#next) {
      this.#hooks.state({ name: "connecting" });
      return;
    }
    const steady = wire.upSince !== null && this.#clock.now() - wire.upSince >= STEADY_AFTER_MS;
    if (steady) this.#attempt = 0;
    let wait = backoffMs(this.#attempt, this.#clock.random());
    if (this.#goneAway !== null && wire.upSince !== null) wait = Math.max(0, this.#goneAway - this.#clock.now());
    this.#attempt += 1;
    if (!this.#current) this.#hooks.state({ name: "waiting", untilMs: this.#clock.now() + wait, ...closed });
    this.#again(wait);
  }
}

// One socket from its opening to its end: waits for `hello`, keeps watch, and ends once.
class Wire {
  upSince = null;
  #socket;
  #clock;
  #hooks;
  #timer = 0;
  #pingMs = 30_000;
  #heardAt;
  #ended = false;

  constructor(socket, clock, hooks) {
    this.#socket = socket;
    this.#clock = clock;
    this.#hooks = hooks;
    this.#heardAt = clock.now();
    this.#timer = clock.setTimeout(() => this.#end({ code: 0, reason: "the server did not answer" }), HELLO_WITHIN_MS);
    socket.onmessage = (event) => this.#message(event.data);
    socket.onclose = (event) => this.#end({ code: event.code, reason: event.reason });
  }

  send(frame) {
    if (this.#socket.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  /** Closes without telling anyone. */
  leave() {
    this.#ended = true;
    this.#release(1000);
  }

  /** Asks for a sign of life now: the network may have changed. */
  probe() {
    if (this.upSince !== null && this.#clock.now() - this.#heardAt > 1_000) this.#ping();
  }

  #message(data) {
    if (this.#ended) return;
    this.#heardAt = this.#clock.now();
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return; // Not a frame of this protocol; nothing can be done with it.
    }
    if (frame === null || typeof frame !== "object") return;
    if (this.upSince === null) {
      if (frame.type !== "hello") return;
      this.upSince = this.#clock.now();
      this.#pingMs = Math.min(120_000, Math.max(5_000, Number(frame.ping_interval_ms) || 30_000));
      this.#watch();
      this.#hooks.hello(frame);
    } else {
      this.#hooks.frame(frame);
    }
  }

  #watch() {
    this.#clock.clearTimeout(this.#timer);
    const quiet = this.#clock.now() - this.#heardAt;
    if (quiet >= this.#pingMs) this.#ping();
    else this.#timer = this.#clock.setTimeout(() => this.#watch(), this.#pingMs - quiet);
  }

  #ping() {
    this.#clock.clearTimeout(this.#timer);
    const asked = this.#clock.now();
    this.send({ type: "ping", t: asked });
    this.#timer = this.#clock.setTimeout(() => {
      if (this.#heardAt >= asked) this.#watch();
      else this.#end({ code: 0, reason: "the server fell silent" });
    }, PONG_WITHIN_MS);
  }

  #end(closed) {
    if (this.#ended) return;
    this.#ended = true;
    this.#release(closed.code === 0 ? 3012 : undefined);
    this.#hooks.closed(closed);
  }

  #release(code) {
    this.#clock.clearTimeout(this.#timer);
    this.#socket.onmessage = null;
    this.#socket.onclose = null;
    if (this.#socket.readyState > 1) return;
    this.#socket.close(code);
  }
}
