// The chat page against a real data plane, in a real browser.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { Cable, Gateway, Tab, launch, until } from "./harness.js";

const ANSWER_BYTES = 1_500;
// About 300 words: an answer takes two to three seconds, so that there is a middle to interrupt.
const DEMO = { name: "demo", type: "Demo", demo: { tokenDelay: "8ms", answerBytes: ANSWER_BYTES } };
// The same over about ten seconds, for what must happen while the first of several is answered.
const SLOW = { name: "demo", type: "Demo", demo: { tokenDelay: "35ms", answerBytes: ANSWER_BYTES } };

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser.close(); });

let gateway;
let cable;
let context;
let tabs;

async function start(config) {
  gateway = await Gateway.start(config);
  cable = await Cable.to(gateway);
}

async function open(hash = "") {
  const tab = await Tab.open(context, cable.port, hash);
  tabs.push(tab);
  await tab.connected();
  return tab;
}

beforeEach(async () => {
  tabs = [];
  context = await browser.newContext();
});

afterEach(async () => {
  const problems = tabs.flatMap((tab) => tab.problems);
  await context.close();
  cable?.close();
  await gateway?.stop();
  [cable, gateway] = [null, null];
  assert.deepEqual(problems, [], "the page reported problems");
});

/** The page shows what the server has: every turn, whole, once. */
async function assertInStep(tab) {
  const session = await gateway.session(tab.session);
  const shown = await tab.turns();
  assert.deepEqual(
    shown.map(({ said, answer, state }) => ({ said, answer, state })),
    session.turns.map(({ text, answer, state }) => ({ said: text, answer, state })),
  );
  return session;
}

describe("an answer", () => {
  beforeEach(() => start({ upstreams: [DEMO] }));

  test("streams in and is complete", async () => {
    const tab = await open();
    await tab.say("Hello <b>there</b>");
    await tab.grown(0, 1);
    const early = (await tab.answer(0)).length;
    assert.ok(early < ANSWER_BYTES, `${early} characters at once: nothing streamed`);
    await tab.grown(0, early + 50);
    await tab.state(0, "done");
    const { turns } = await assertInStep(tab);
    assert.equal(turns[0].answer.length, ANSWER_BYTES);
    assert.match(turns[0].answer, /^You said: Hello <b>there<\/b>\n/);
    assert.equal(await tab.page.evaluate(() => document.querySelectorAll("#turns b").length), 0, "text became markup");
  });

  test("goes on after a reload in its middle, with nothing missing and nothing doubled", async () => {
    const [whole, cut] = [await open(), await open()];
    await whole.say("Same words");
    await whole.state(0, "done");
    await cut.say("Same words");
    for (const characters of [50, 400, 900]) {
      await cut.grown(0, characters);
      await cut.page.reload();
      await cut.connected();
    }
    await cut.state(0, "done");
    await assertInStep(cut);
    assert.equal(await cut.answer(0), await whole.answer(0));
    await cut.page.reload();
    await cut.state(0, "done");
    await assertInStep(cut);
  });
});

describe("an answer that takes its time", () => {
  beforeEach(() => start({ upstreams: [SLOW] }));

  test("stops by the button, and the next message is answered", async () => {
    const tab = await open();
    await tab.say("First");
    await tab.grown(0, 40);
    await tab.page.click("#stop");
    await tab.state(0, "cancelled");
    assert.match((await tab.turns())[0].note, /Stopped/);
    assert.ok((await tab.answer(0)).length < ANSWER_BYTES);
    await tab.page.waitForSelector("#stop", { state: "hidden" });
    await tab.say("Second");
    await tab.grown(1, 40);
    await tab.page.click("#stop");
    await tab.state(1, "cancelled");
    const { turns } = await assertInStep(tab);
    assert.deepEqual(turns.map((turn) => turn.seq), [1, 2]);
  });

  test("follows the keyboard: Shift+Enter, Enter, Esc, and the Send button", async () => {
    const tab = await open();
    assert.ok(await tab.page.isDisabled("#send"), "an empty message can be sent");
    await tab.page.focus("#message");
    await tab.page.keyboard.type("One line");
    await tab.page.keyboard.press("Shift+Enter");
    await tab.page.keyboard.type("and another");
    await tab.page.keyboard.press("Enter");
    await tab.grown(0, 40);
    await tab.page.keyboard.press("Escape");
    await tab.state(0, "cancelled");
    assert.equal((await tab.turns())[0].said, "One line\nand another");
    await tab.page.fill("#message", "By the button");
    await tab.page.click("#send");
    await tab.state(1, "running");
    assert.equal(await tab.page.evaluate(() => document.activeElement.id), "message");
  });

  test("stops in every tab, whoever stops it", async () => {
    const first = await open();
    await first.say("To be stopped by the other");
    await first.grown(0, 40);
    const second = await open(first.hash);
    await second.grown(0, 40);
    await second.page.click("#stop");
    await first.state(0, "cancelled");
    await second.state(0, "cancelled");
    await assertInStep(first);
    await assertInStep(second);
  });
});

describe("a queue", () => {
  beforeEach(() => start({ upstreams: [SLOW] }));

  test("tells the place of each message, and a message can be stopped there", async () => {
    const tab = await open();
    for (const text of ["one", "two", "three"]) await tab.say(text);
    await tab.waitForWords(".note", /next in line/);
    await tab.waitForWords(".note", /number 2 in line/);
    await tab.page.reload();
    await tab.waitForWords(".note", /number 2 in line/);
    await tab.page.click("#turns > li:nth-child(2) .actions button");
    await tab.page.click("#stop");
    await tab.state(1, "cancelled");
    await tab.state(2, "done");
    await assertInStep(tab);
    assert.deepEqual((await tab.turns()).map((turn) => turn.said), ["one", "two", "three"]);
  });

  test("that is full refuses, and the message can be sent later under the same id", async () => {
    const tab = await open();
    for (let i = 0; i < 10; i += 1) await tab.say(`message ${i}`);
    await tab.waitForWords(".note", /Not sent\. Too many messages already wait/);
    await tab.page.click("#stop");
    await tab.state(1, "running");
    const refused = '#turns > li[data-state="refused"]';
    const id = await tab.page.getAttribute(refused, "data-turn");
    await tab.page.click(`${refused} button:text-is("Try again")`);
    await tab.page.waitForSelector(refused, { state: "detached" });
    await tab.page.waitForSelector(`#turns > li[data-turn="${id}"] .note:text("number 8 in line")`);
  });
});

describe("two tabs", () => {
  beforeEach(() => start({ upstreams: [DEMO] }));

  test("stay in step, whoever speaks", async () => {
    const first = await open();
    await first.say("From the first");
    await first.grown(0, 100);
    const second = await open(first.hash);
    await second.grown(0, 200);
    await second.say("From the second");
    await first.state(0, "done");
    await first.state(1, "done");
    await second.state(1, "done");
    await assertInStep(first);
    await assertInStep(second);
  });

  test("share the list of conversations", async () => {
    const first = await open();
    const second = await open();
    await first.say("A subject\nand more");
    await second.page.waitForSelector("#sessions a");
    assert.equal(await second.text("#sessions a"), "A subject");
    await first.state(0, "done");
    await second.page.click("#sessions a");
    await second.state(0, "done");
    await assertInStep(second);
    assert.equal(second.session, first.session);
  });

  test("of two browsers find the conversation by its id", async () => {
    const first = await open();
    await first.say("To be shared");
    await first.state(0, "done");
    const elsewhere = await browser.newContext();
    const second = await Tab.open(elsewhere, cable.port);
    await second.connected();
    await second.page.fill("#open-id", first.session);
    await second.page.click("#open-form button");
    await second.state(0, "done");
    await assertInStep(second);
    assert.equal(await second.text("#sessions a[aria-current]"), "To be shared");
    await second.page.goBack();
    await second.page.waitForSelector("#empty:not([hidden])");
    assert.deepEqual(second.problems, []);
    await elsewhere.close();
  });

  test("both learn that the conversation was deleted", async () => {
    const first = await open();
    await first.say("Soon gone");
    await first.state(0, "done");
    const second = await open(first.hash);
    await second.state(0, "done");
    await first.page.click("#delete");
    await first.page.click('#confirm button[value="keep"]');
    await first.page.click("#delete");
    await first.page.click('#confirm button[value="delete"]');
    await second.waitForWords("#notices", /was deleted/);
    await first.page.waitForSelector("#empty:not([hidden])");
    assert.equal(await first.page.locator("#sessions a").count(), 0);
    await second.page.click("#notices button");
    await second.page.waitForSelector("#empty:not([hidden])");
    await second.say("Anew");
    await second.state(0, "done");
    await assertInStep(second);
  });
});

describe("a connection that breaks", () => {
  beforeEach(() => start({ upstreams: [DEMO] }));

  test("in the middle of an answer costs no word of it", async () => {
    const tab = await open();
    await tab.say("Hold on");
    for (const characters of [60, 500]) {
      await tab.grown(0, characters);
      cable.unplug();
      await tab.waitForWords("#connection-words", /Reconnecting in \d+ s/);
      await tab.waitForWords("#notices", /connection was lost/);
      cable.plug();
      await tab.connected();
    }
    await tab.state(0, "done");
    const { turns } = await assertInStep(tab);
    assert.equal(turns[0].answer.length, ANSWER_BYTES);
    assert.equal((await tab.text("#notices")).trim(), "");
  });

  test("keeps a message typed meanwhile, also over a reload", async () => {
    const tab = await open();
    await tab.say("Before");
    await tab.state(0, "done");
    cable.unplug();
    await tab.waitForWords("#connection-words", /Reconnecting/);
    await tab.say("Meanwhile");
    await tab.waitForWords(".note", /Will be sent when connected/);
    cable.plug();
    await tab.page.reload();
    await tab.state(1, "done");
    const { turns } = await assertInStep(tab);
    assert.deepEqual(turns.map((turn) => turn.text), ["Before", "Meanwhile"]);
  });

  test("before the receipt came does not ask twice", async () => {
    const tab = await open();
    await tab.say("Before");
    await tab.state(0, "done");
    cable.mute();
    await tab.say("Heard, but not answered");
    await until("the gateway has it", async () => (await gateway.session(tab.session)).turns.length === 2);
    cable.unplug();
    cable.plug();
    await tab.state(1, "done");
    const { turns } = await assertInStep(tab);
    assert.equal(turns.length, 2);
  });

  test("is made again at once where the user asks", async () => {
    const tab = await open();
    cable.unplug();
    // The waits grow; by now one is long enough to be cut short.
    await tab.waitForWords("#connection-words", /Reconnecting in [4-9] s/);
    cable.plug();
    const asked = Date.now();
    await tab.page.click("#notices button");
    await tab.connected();
    assert.ok(Date.now() - asked < 2_000);
  });
});

describe("a server that restarts", () => {
  test("in good order finishes the answer first; the page reconnects and goes on", async () => {
    await start({ upstreams: [DEMO], drain: { acceptFloor: "0s", reconnectSpread: "1s", timeout: "20s" } });
    const tab = await open();
    await tab.say("Finish this");
    await tab.grown(0, 60);
    gateway.signal("SIGTERM");
    await tab.waitForWords("#connection-words", /Server restarts/);
    await tab.state(0, "done");
    assert.equal((await tab.answer(0)).length, ANSWER_BYTES);
    await gateway.exited;
    await gateway.startAgain();
    await tab.connected();
    // The embedded store went with the process.
    await tab.waitForWords("#notices", /no longer has all of this conversation/);
    await tab.say("And another");
    await tab.state(1, "done");
    const turns = await tab.turns();
    assert.deepEqual(turns.map((turn) => turn.said), ["Finish this", "And another"]);
    assert.ok(turns.every((turn) => turn.answer.length === ANSWER_BYTES));
  });

  test("by force loses what the store loses, says so, and asks again where the user wants", async () => {
    await start({ upstreams: [DEMO] });
    const tab = await open();
    await tab.say("Earlier");
    await tab.state(0, "done");
    await tab.say("In the middle");
    await tab.grown(1, 60);
    await gateway.kill();
    await tab.waitForWords("#connection-words", /Reconnecting/);
    await gateway.startAgain();
    await tab.state(1, "lost");
    await tab.waitForWords("#notices", /no longer has all of this conversation/);
    await tab.page.click("#turns > li:nth-child(2) .actions button");
    await tab.state(1, "done");
    const turns = await tab.turns();
    assert.deepEqual(turns.map((turn) => turn.said), ["Earlier", "In the middle"]);
    assert.equal(turns[1].answer.length, ANSWER_BYTES);
    assert.equal((await gateway.session(tab.session)).turns.length, 1);
  });
});

describe("errors are said in words", () => {
  test("a model that cannot be reached", async () => {
    const openAI = { url: "http://127.0.0.1:9/v1", model: "none" };
    await start({ upstreams: [{ name: "none", type: "OpenAI", openAI }] });
    const tab = await open();
    await tab.say("Anybody there?");
    await tab.state(0, "failed");
    assert.match((await tab.turns())[0].note, /model cannot be reached/);
    // A failed turn is over: asking again is another turn.
    await tab.page.click("#turns > li:nth-child(1) .actions button");
    await tab.state(1, "failed");
    assert.equal((await tab.turns())[1].said, "Anybody there?");
  });

  test("a message that is too long, and it can be edited", async () => {
    await start({ upstreams: [DEMO], limits: { maxMessageBytes: 1024 } });
    const tab = await open();
    await tab.say("x".repeat(2_000));
    await tab.waitForWords(".note", /Not sent\. The message is too long/);
    await tab.page.click("#turns .actions button");
    assert.equal((await tab.page.inputValue("#message")).length, 2_000);
    assert.equal((await tab.turns()).length, 0);
    await tab.say("short");
    await tab.state(0, "done");
    await assertInStep(tab);
  });

  test("an address that names no conversation", async () => {
    await start({ upstreams: [DEMO] });
    const tab = await open("#%E0%A4%A");
    await tab.say("Still works");
    await tab.state(0, "done");
  });
});
