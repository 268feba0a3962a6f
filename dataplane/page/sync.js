// Keeps sessions in step with the server over a connection that comes and goes: snapshot, then resume after its position,
// then live; turns are handed in again under the same id until they are seen. No DOM, no socket, no timer of its own.

import { Session } from "./session.js";

const ENTRY_TYPES = new Set(["turn", "delta", "reset", "takeover", "done", "cancelled"]);
const LOAD_RETRY_MS = [500, 1000, 2000, 4000, 8000];

export class Sync {
  #sessions = new Map();
  #send = null;
  #leaving = false;
  #maxMessageBytes = Infinity;
  #load;
  #later;
  #changed;
  #notify;

  /**
   * @param {object} hooks
   * @param {(id: string) => Promise<object|null>} hooks.load the session's snapshot, or null where there is none
   * @param {(ms: number, run: () => void) => void} hooks.later runs something after a time
   * @param {(session: Session, change: object) => void} hooks.changed something of a session changed
   * @param {(kind: string, detail: object) => void} hooks.notify something to say in words
   */
  constructor({ load, later, changed, notify }) {
    this.#load = load;
    this.#later = later;
    this.#changed = changed;
    this.#notify = notify;
  }

  /** The session of that id, attached from now on. A `fresh` one was just named by this page: there is no snapshot. */
  open(id, fresh = false) {
    let session = this.#sessions.get(id);
    if (!session) {
      session = new Session(id);
      session.strikes = 0;
      if (fresh) session.position = "0";
      this.#sessions.set(id, session);
    }
    this.#advance(session);
    return session;
  }

  /** Forgets a session that is no longer shown. */
  drop(id) {
    this.#sessions.delete(id);
  }

  /** A connection is ready; `send` puts a frame on it. */
  linkUp(send, hello) {
    this.#send = send;
    this.#leaving = false;
    this.#maxMessageBytes = hello.max_message_bytes ?? Infinity;
    for (const session of this.#sessions.values()) this.#advance(session);
  }

  /** The connection is gone. `tooLarge` says that it was closed for a message above the server's bound. */
  linkDown(tooLarge = false) {
    this.#send = null;
    for (const session of this.#sessions.values()) {
      if (session.phase !== "loading") session.phase = "idle";
      for (const item of session.outbox.values()) {
        if (item.state === "sent" && tooLarge) this.#refuse(session, item, { code: "too_large", retryable: false });
        else if (item.state !== "refused") item.state = "waiting";
      }
      this.#changed(session, { kind: "outbox" });
    }
  }

  /** The server is about to close this connection: new turns wait for the next one. */
  leaving() {
    this.#leaving = true;
  }

  /** Hands in a turn; the page shows it at once. */
  submit(session, turn, text) {
    const item = { turn, text, state: "waiting", place: 0, problem: null };
    const lost = session.turns.get(turn);
    if (lost?.lost) session.turns.delete(turn);
    session.outbox.set(turn, item);
    this.#changed(session, { kind: "outbox" });
    this.#flush(session);
  }

  /** Hands in a refused turn again, under its own id. */
  retry(session, turn) {
    const item = session.outbox.get(turn);
    if (item?.state !== "refused") return;
    Object.assign(item, { state: "waiting", problem: null });
    this.#changed(session, { kind: "outbox" });
    this.#flush(session);
  }

  /** Takes a turn that has not been accepted out of the outbox. Returns its text. */
  withdraw(session, turn) {
    const item = session.outbox.get(turn);
    session.outbox.delete(turn);
    this.#changed(session, { kind: "outbox" });
    return item?.text ?? "";
  }

  /** Asks for a turn to be stopped; asks again after a reconnect if it is still open by then. */
  cancel(session, turn) {
    const target = session.turns.get(turn) ?? session.outbox.get(turn);
    if (!target) return;
    target.stopping = true;
    if (session.phase === "live") this.#send?.({ type: "cancel", session: session.id, turn });
    this.#changed(session, { kind: "turn", turn: target });
  }

  /** The session was deleted by this page. */
  deleted(session) {
    session.deleted = true;
    session.phase = "idle";
    session.outbox.clear();
    this.#changed(session, { kind: "deleted" });
  }

  /** Takes a frame from the server. */
  frame(frame) {
    const session = this.#sessions.get(frame.session);
    if (!session) return frame.type === "error" && !frame.session ? this.#notify("error", frame) : undefined;
    if (ENTRY_TYPES.has(frame.type) || (frame.type === "error" && frame.id)) return this.#entry(session, frame);
    if (frame.type === "resumed") return this.#resumed(session, frame);
    if (frame.type === "accepted") return this.#accepted(session, frame);
    if (frame.type === "error") return this.#error(session, frame);
    return undefined;
  }

  // Entries count only while live: before `resumed` they belong to an earlier position of this reader.
  #entry(session, frame) {
    if (session.phase !== "live") return;
    const change = session.apply(frame);
    if (change) this.#changed(session, change);
  }

  #advance(session) {
    if (session.deleted || session.phase === "loading") return;
    if (session.position === null) {
      this.#loadSnapshot(session);
    } else if (this.#send && session.phase === "idle") {
      session.phase = "resuming";
      this.#send({ type: "resume", session: session.id, after: session.position });
    }
  }

  async #loadSnapshot(session) {
    session.phase = "loading";
    let lost;
    try {
      const snapshot = await this.#load(session.id);
      lost = snapshot === null ? session.takeNothing() : session.takeSnapshot(snapshot);
    } catch (error) {
      const waitMs = LOAD_RETRY_MS[Math.min(session.strikes, LOAD_RETRY_MS.length - 1)];
      session.strikes += 1;
      this.#notify("load_failed", { session, message: error.message, waitMs });
      this.#later(waitMs, () => {
        session.phase = "idle";
        if (this.#sessions.get(session.id) === session) this.#advance(session);
      });
      return;
    }
    session.phase = "idle";
    session.loaded = true;
    this.#changed(session, { kind: "all", lost });
    if (this.#sessions.get(session.id) === session) this.#advance(session);
  }

  #resumed(session, frame) {
    if (session.phase !== "resuming") return;
    if (!frame.recovered) {
      // The log no longer tells what follows the position: the snapshot does. Where that happens over and over, wait.
      session.phase = "idle";
      session.position = null;
      const waitMs = session.strikes === 0 ? 0 : LOAD_RETRY_MS[Math.min(session.strikes, LOAD_RETRY_MS.length) - 1];
      session.strikes += 1;
      if (waitMs === 0) this.#advance(session);
      else this.#later(waitMs, () => this.#advance(session));
      return;
    }
    session.phase = "live";
    session.strikes = 0;
    this.#changed(session, { kind: "live" });
    this.#flush(session);
    for (const turn of session.turns.values()) {
      if (turn.stopping) this.#send?.({ type: "cancel", session: session.id, turn: turn.id });
    }
  }

  #flush(session) {
    if (session.phase !== "live" || this.#leaving || !this.#send) return;
    for (const item of session.outbox.values()) {
      if (item.state !== "waiting") continue;
      const frame = { type: "send", session: session.id, turn: item.turn, text: item.text };
      if (new TextEncoder().encode(JSON.stringify(frame)).length > this.#maxMessageBytes) {
        this.#refuse(session, item, { code: "too_large", retryable: false });
        continue;
      }
      item.state = "sent";
      this.#send(frame);
    }
    this.#changed(session, { kind: "outbox" });
  }

  #accepted(session, frame) {
    const item = session.outbox.get(frame.turn);
    if (!item) return;
    if (frame.state === "queued") {
      Object.assign(item, { state: "queued", place: frame.place ?? 1 });
      if (item.stopping) this.#send?.({ type: "cancel", session: session.id, turn: item.turn });
    } else if (frame.state === "running") {
      item.state = "accepted";
    } else {
      // It ended before: the snapshot has it.
      session.outbox.delete(frame.turn);
      if (!session.turns.has(frame.turn)) {
        session.position = null;
        session.phase = "idle";
        this.#advance(session);
      }
    }
    this.#changed(session, { kind: "outbox" });
  }

  #error(session, frame) {
    const item = frame.turn && session.outbox.get(frame.turn);
    if (item && item.state === "sent") {
      // A server that goes away refuses new turns; the next one will take them.
      if (frame.code === "draining") {
        this.#leaving = true;
        item.state = "waiting";
      } else {
        this.#refuse(session, item, frame);
      }
      this.#changed(session, { kind: "outbox" });
    } else if (frame.turn) {
      const turn = session.turns.get(frame.turn);
      if (turn) turn.stopping = false;
      this.#notify("error", frame);
      if (turn) this.#changed(session, { kind: "turn", turn });
    } else if (frame.code === "not_found") {
      this.deleted(session);
    } else if (session.phase === "resuming") {
      session.strikes += 1;
      this.#notify("error", frame);
      this.#later(frame.retry_after_ms ?? LOAD_RETRY_MS[Math.min(session.strikes, LOAD_RETRY_MS.length) - 1], () => {
        if (session.phase !== "resuming") return;
        session.phase = "idle";
        this.#advance(session);
      });
    } else {
      this.#notify("error", frame);
    }
  }

  #refuse(session, item, problem) {
    Object.assign(item, { state: "refused", problem, stopping: false });
  }
}
