// The page's own rules, without browser and server: what a session takes, when a connection is made again.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { pageModules } from "./harness.js";

let modules;
let Session;
let Sync;
let Link;
let link;
let session;
before(async () => {
  modules = await pageModules();
  session = await modules.load("session.js");
  link = await modules.load("link.js");
  ({ Session } = session);
  ({ Sync } = await modules.load("sync.js"));
  ({ Link } = link);
});
after(() => modules.remove());

const entry = (type, turn, id, more = {}) => ({ type, session: "s", turn, id, ...more });

describe("a session", () => {
  test("compares ids by their two numbers, beyond what a double holds", () => {
    assert.ok(session.compareIds("9-9", "10-0") < 0);
    assert.ok(session.compareIds("10-9", "10-10") < 0);
    assert.ok(session.compareIds("0", "1-0") < 0);
    assert.ok(session.compareIds("18446744073709551614-0", "18446744073709551615-0") < 0);
    assert.equal(session.compareIds("7-3", "7-3"), 0);
    assert.throws(() => session.compareIds("7", "7-3"), /not an entry id: 7/);
  });

  test("takes each entry once, and none before its position", () => {
    const s = new Session("s");
    s.takeSnapshot({ position: "5-3", turns: [{ turn: "a", seq: 1, state: "done", text: "q", answer: "x" }] });
    assert.equal(s.apply(entry("delta", "a", "5-3", { text: "again" })), null);
    s.apply(entry("turn", "b", "6-0", { seq: 2, text: "next" }));
    s.apply(entry("delta", "b", "6-1", { text: "one " }));
    assert.equal(s.apply(entry("delta", "b", "6-1", { text: "one " })), null);
    s.apply(entry("delta", "b", "10-0", { text: "two" }));
    s.apply(entry("done", "b", "10-1", { finish_reason: "stop" }));
    assert.deepEqual(s.ordered().map((t) => [t.id, t.answer, t.state]), [["a", "x", "done"], ["b", "one two", "done"]]);
  });

  test("voids the text so far on reset, and only that", () => {
    const s = new Session("s");
    s.takeNothing();
    s.apply(entry("turn", "a", "5-0", { seq: 1, text: "q" }));
    s.apply(entry("delta", "a", "5-1", { text: "wrong" }));
    s.apply(entry("takeover", "a", "6-0"));
    s.apply(entry("reset", "a", "6-1"));
    s.apply(entry("delta", "a", "6-2", { text: "right" }));
    const [turn] = s.ordered();
    assert.deepEqual([turn.answer, turn.resets, turn.takeovers, turn.text], ["right", 1, 1, "q"]);
  });

  test("takes a snapshot whose position lies before the running turn", () => {
    const s = new Session("s");
    s.takeSnapshot({ position: "4-9", turns: [{ turn: "a", seq: 1, state: "running", text: "q", answer: "" }] });
    s.apply(entry("turn", "a", "5-0", { seq: 1, text: "q" }));
    s.apply(entry("delta", "a", "5-1", { text: "x" }));
    assert.deepEqual(s.ordered().map((t) => [t.id, t.answer]), [["a", "x"]]);
  });

  test("keeps a forgotten conversation above the one that begins anew", () => {
    const s = new Session("s");
    s.takeNothing();
    s.apply(entry("turn", "a", "5-0", { seq: 1, text: "q" }));
    s.apply(entry("done", "a", "5-1"));
    s.apply(entry("turn", "b", "6-0", { seq: 2, text: "r" }));
    assert.equal(s.takeNothing(), true);
    assert.deepEqual(s.ordered().map((t) => [t.id, t.state]), [["a", "done"], ["b", "lost"]]);
    s.apply(entry("turn", "c", "7-0", { seq: 1, text: "n" }));
    assert.deepEqual(s.ordered().map((t) => t.id), ["a", "b", "c"]);
    assert.equal(s.takeSnapshot({ position: "7-0", turns: [{ turn: "c", seq: 1, state: "running", text: "n", answer: "" }] }), false);
    assert.deepEqual(s.ordered().map((t) => t.id), ["a", "b", "c"]);
  });

  test("knows a lost end from turns that only left the history", () => {
    const s = new Session("s");
    const told = (turns) => ({ position: "9-0", turns: turns.map(([turn, seq]) => ({ turn, seq, state: "done", text: "", answer: "" })) });
    s.takeSnapshot(told([["a", 1], ["b", 2], ["c", 3]]));
    assert.equal(s.takeSnapshot(told([["b", 2], ["c", 3], ["d", 4]])), false, "a left the history");
    assert.equal(s.takeSnapshot(told([["b", 2], ["c", 3]])), true, "d was lost");
    assert.equal(s.takeSnapshot(told([["x", 50]])), false, "much happened elsewhere");
    assert.equal(s.takeSnapshot(told([["y", 1]])), true, "the session began anew");
    assert.deepEqual(s.ordered().map((t) => t.id), ["a", "b", "c", "d", "x", "y"]);
  });
});

describe("sync", () => {
  function setUp(snapshots) {
    const sent = [];
    const said = [];
    const later = [];
    const sync = new Sync({
      load: async () => {
        const next = snapshots.shift();
        if (next instanceof Error) throw next;
        return next ?? null;
      },
      later: (ms, run) => later.push(run),
      changed: () => {},
      notify: (kind, detail) => said.push([kind, detail]),
    });
    const up = (hello = {}) => sync.linkUp((frame) => sent.push(frame), hello);
    return { sync, sent, said, later, up };
  }
  const settle = () => new Promise((done) => setImmediate(done));
  const empty = { position: "3-0", turns: [] };

  test("resumes after the snapshot, and hands in turns only when live", async () => {
    const { sync, sent, up } = setUp([empty]);
    const s = sync.open("s");
    up();
    sync.submit(s, "t", "hi");
    await settle();
    assert.deepEqual(sent, [{ type: "resume", session: "s", after: "3-0" }]);
    sync.frame({ type: "resumed", session: "s", recovered: true, position: "3-0" });
    assert.deepEqual(sent[1], { type: "send", session: "s", turn: "t", text: "hi" });
  });

  test("hands a turn in again under its id until the log tells of it", async () => {
    const { sync, sent, up } = setUp([empty]);
    const s = sync.open("s");
    await settle();
    up();
    sync.frame({ type: "resumed", session: "s", recovered: true, position: "3-0" });
    sync.submit(s, "t", "hi");
    sync.frame({ type: "accepted", session: "s", turn: "t", seq: 1, state: "running", duplicate: false });
    sync.linkDown();
    up();
    sync.frame({ type: "resumed", session: "s", recovered: true, position: "3-0" });
    assert.equal(sent.filter((frame) => frame.type === "send" && frame.turn === "t").length, 2);
    sync.frame(entry("turn", "t", "4-0", { seq: 1, text: "hi" }));
    sync.linkDown();
    up();
    sync.frame({ type: "resumed", session: "s", recovered: true, position: "4-0" });
    assert.equal(sent.filter((frame) => frame.type === "send").length, 2);
    assert.deepEqual(sent.at(-1), { type: "resume", session: "s", after: "4-0" });
  });

  test("takes no entry between a snapshot and the outcome of the resume", async () => {
    const { sync, up } = setUp([empty, { position: "5-0", turns: [] }]);
    const s = sync.open("s");
    await settle();
    up();
    sync.frame({ type: "resumed", session: "s", recovered: false, position: "0" });
    await settle();
    sync.frame(entry("turn", "t", "9-0", { seq: 4, text: "of the old reader" }));
    assert.equal(s.position, "5-0");
    sync.frame({ type: "resumed", session: "s", recovered: true, position: "5-0" });
    sync.frame(entry("turn", "u", "6-0", { seq: 1, text: "next" }));
    assert.deepEqual([...s.turns.keys()], ["u"]);
  });

  test("takes another snapshot where the log does not go on, and waits where that happens over and over", async () => {
    const { sync, sent, later, up } = setUp([empty, empty, empty]);
    sync.open("s");
    await settle();
    up();
    for (const waits of [0, 1]) {
      sync.frame({ type: "resumed", session: "s", recovered: false, position: "0" });
      await settle();
      assert.equal(later.length, waits);
    }
    later.shift()();
    await settle();
    assert.equal(sent.filter((frame) => frame.type === "resume").length, 3);
  });

  test("loads again after a failure, and says so", async () => {
    const { sync, said, later, sent, up } = setUp([new Error("no storage"), empty]);
    sync.open("s");
    up();
    await settle();
    assert.equal(said[0][1].message, "no storage");
    later.shift()();
    await settle();
    assert.equal(sent[0].type, "resume");
  });

  test("tells a refused turn from a refused stop", async () => {
    const { sync, said, up } = setUp([empty]);
    const s = sync.open("s");
    await settle();
    up({ max_message_bytes: 300 });
    sync.frame({ type: "resumed", session: "s", recovered: true, position: "3-0" });
    sync.submit(s, "t", "hi");
    sync.frame({ type: "error", session: "s", turn: "t", code: "rate_limited", message: "", retryable: true });
    assert.equal(s.outbox.get("t").state, "refused");
    sync.retry(s, "t");
    assert.equal(s.outbox.get("t").state, "sent");
    sync.frame(entry("turn", "t", "4-0", { seq: 1, text: "hi" }));
    sync.cancel(s, "t");
    sync.frame({ type: "error", session: "s", turn: "t", code: "internal", message: "", retryable: true });
    assert.deepEqual([s.turns.get("t").state, s.turns.get("t").stopping, said.length], ["running", false, 1]);
    sync.submit(s, "u", "x".repeat(400));
    assert.equal(s.outbox.get("u").problem.code, "too_large");
  });

  test("keeps a turn that a leaving server refused for the next one", async () => {
    const { sync, sent, up } = setUp([empty]);
    const s = sync.open("s");
    await settle();
    up();
    sync.frame({ type: "resumed", session: "s", recovered: true, position: "3-0" });
    sync.submit(s, "t", "hi");
    sync.frame({ type: "error", session: "s", turn: "t", code: "draining", message: "", retryable: true });
    sync.submit(s, "u", "later");
    assert.equal(sent.filter((frame) => frame.type === "send").length, 1);
    sync.linkDown();
    up();
    sync.frame({ type: "resumed", session: "s", recovered: true, position: "3-0" });
    assert.deepEqual(sent.filter((frame) => frame.type === "send").map((frame) => frame.turn), ["t", "t", "u"]);
  });
});

describe("a connection", () => {
  class Clock {
    time = 0;
    timers = [];
    random = () => 0.5;
    now = () => this.time;
    setTimeout = (run, ms) => {
      const timer = { at: this.time + ms, run };
      this.timers.push(timer);
      return timer;
    };
    clearTimeout = (timer) => { this.timers = this.timers.filter((one) => one !== timer); };
    advance(ms) {
      const end = this.time + ms;
      for (;;) {
        const due = this.timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
        if (!due) break;
        this.time = Math.max(this.time, due.at);
        this.clearTimeout(due);
        due.run();
      }
      this.time = end;
    }
  }

  class Socket {
    readyState = 0;
    sent = [];
    closedWith = null;
    open() {
      this.readyState = 1;
      this.tell({ type: "hello", ping_interval_ms: 30_000 });
    }
    tell(frame) { this.onmessage?.({ data: JSON.stringify(frame) }); }
    send(text) { this.sent.push(JSON.parse(text)); }
    drop(code, reason = "") {
      this.readyState = 3;
      this.onclose?.({ code, reason });
    }
    close(code) {
      this.readyState = 2;
      this.closedWith = code ?? 0;
    }
  }

  function setUp() {
    const clock = new Clock();
    const sockets = [];
    const events = [];
    const made = new Link({
      dial: () => sockets[sockets.push(new Socket()) - 1],
      up: () => events.push("up"),
      down: ({ code }) => events.push(`down ${code}`),
      frame: (frame) => events.push(frame.type),
      state: ({ name }) => events.push(name),
    }, clock);
    made.start();
    return { clock, sockets, events, link: made };
  }

  test("waits longer each time, at random, up to a bound", () => {
    assert.deepEqual([0, 1, 2, 3].map((attempt) => link.backoffMs(attempt, 1)), [500, 1_000, 2_000, 4_000]);
    assert.equal(link.backoffMs(50, 1), 15_000);
    assert.equal(link.backoffMs(50, 0), 7_500);
  });

  test("is made again after the codes that allow it", () => {
    for (const code of [1000, 1001, 1006, 1011, 1012, 1013, 3000, 3008, 3012, 3499]) assert.ok(link.mayReconnect(code), code);
    for (const code of [1008, 3500, 3999]) assert.ok(!link.mayReconnect(code), code);
    const { clock, sockets, events } = setUp();
    sockets[0].open();
    sockets[0].drop(1008, "permission_denied");
    clock.advance(100_000);
    assert.equal(sockets.length, 1);
    assert.equal(events.at(-1), "refused");
  });

  test("is made before the old one is left when the server goes away", () => {
    const { clock, sockets, events } = setUp();
    sockets[0].open();
    sockets[0].tell({ type: "go_away", reconnect_after_ms: 1_000, time_left_ms: 60_000 });
    clock.advance(1_200);
    assert.equal(sockets.length, 2);
    sockets[0].tell({ type: "delta" });
    assert.equal(events.at(-1), "delta", "the old one still tells");
    sockets[1].open();
    assert.equal(sockets[0].closedWith, 1000);
    assert.deepEqual(events.slice(-3), ["down 1000", "connected", "up"]);
    sockets[0].tell({ type: "delta" });
    assert.equal(events.at(-1), "up");
  });

  test("tries again next to a leaving server that is still needed", () => {
    const { clock, sockets, events } = setUp();
    sockets[0].open();
    sockets[0].tell({ type: "go_away", reconnect_after_ms: 0, time_left_ms: 60_000 });
    clock.advance(200);
    sockets[1].drop(1006);
    assert.equal(events.at(-1), "go_away", "nothing to say: the old one is there");
    clock.advance(1_000);
    assert.equal(sockets.length, 3);
    sockets[0].drop(1012);
    assert.equal(events.at(-1), "connecting");
    sockets[2].open();
    assert.equal(events.at(-1), "up");
  });

  test("asks for a sign of life, and ends without one", () => {
    const { clock, sockets, events } = setUp();
    sockets[0].open();
    clock.advance(30_000);
    assert.equal(sockets[0].sent.at(-1).type, "ping");
    sockets[0].tell({ type: "pong" });
    clock.advance(30_000);
    assert.ok(!events.includes("waiting"));
    clock.advance(30_000);
    assert.ok(events.includes("waiting"), "the server fell silent");
    assert.equal(sockets[0].closedWith, 3012);
  });

  test("does not wait for ever for the first word", () => {
    const { clock, sockets, events } = setUp();
    clock.advance(10_000);
    assert.equal(events.at(-1), "waiting");
    clock.advance(1_000);
    assert.equal(sockets.length, 2);
  });
});
