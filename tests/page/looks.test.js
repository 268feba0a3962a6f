// How the page looks and feels: sizes, dark mode, accessibility, long answers. Pictures are kept for people to look at.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { Gateway, Model, Tab, get, launch, screenshotFolder } from "./harness.js";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const PHONE = { viewport: { width: 390, height: 780 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
const DESKTOP = { viewport: { width: 1180, height: 800 } };
const MARKDOWN = "Some **bold** and `code`:\n\n```rust\nfn main() {}\n```\n\n# Heading\n\n- one\n- two <i>not markup</i>\n\nThe end.";

let browser;
let gateway;
let folder;
before(async () => {
  browser = await launch();
  folder = await screenshotFolder();
  gateway = await Gateway.start({ upstreams: [{ name: "demo", type: "Demo", demo: { tokenDelay: "50ms", answerBytes: 600 } }] });
});
after(async () => {
  await browser.close();
  await gateway.stop();
  console.log(`pictures: ${folder}`);
});

const picture = (tab, name) => tab.page.screenshot({ path: path.join(folder, `${name}.png`) });

for (const [device, size] of [["phone", PHONE], ["desktop", DESKTOP]]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`${device}, ${colorScheme}`, async () => {
      const context = await browser.newContext({ ...size, colorScheme, bypassCSP: true });
      const tab = await Tab.open(context, gateway.ports.http);
      await tab.connected();
      await picture(tab, `${device}-${colorScheme}-empty`);
      await assertAccessible(tab);
      await tab.say(MARKDOWN);
      await tab.state(0, "done");
      await tab.say("And a longer question, one that does not fit on one line of a phone?");
      await tab.grown(1, 40);
      await picture(tab, `${device}-${colorScheme}-streaming`);
      await assertFits(tab);
      await tab.page.keyboard.press("Escape");
      await tab.state(1, "cancelled");
      await assertAccessible(tab);
      await assertBackground(tab, colorScheme);
      if (device === "phone") {
        await tab.page.click("#menu");
        await tab.page.waitForSelector(".drawer-open");
        await tab.page.waitForFunction(() => document.getElementById("drawer").getBoundingClientRect().left >= 0);
        await picture(tab, `${device}-${colorScheme}-list`);
        await tab.page.keyboard.press("Escape");
        await tab.page.waitForFunction(() => document.getElementById("drawer").getBoundingClientRect().right <= 0);
      }
      assert.deepEqual(tab.problems, []);
      await context.close();
    });
  }
}

/** Nothing sticks out to the side, and what is touched is large enough and within the window. */
async function assertFits(tab) {
  const found = await tab.page.evaluate(() => {
    const buttons = [...document.querySelectorAll("main > header button, #composer button, #message")]
      .filter((element) => element.checkVisibility())
      .map((element) => ({ id: element.id, box: element.getBoundingClientRect().toJSON() }));
    return { over: document.documentElement.scrollWidth - innerWidth, height: innerHeight, width: innerWidth, buttons };
  });
  assert.ok(found.over <= 0, `${found.over} px too wide`);
  assert.ok(found.buttons.some((button) => button.id === "stop"), "no Stop button while an answer is written");
  for (const { id, box } of found.buttons) {
    assert.ok(box.height >= 44 && box.width >= 44, `${id} is too small to touch: ${box.width} x ${box.height}`);
    assert.ok(box.bottom <= found.height && box.right <= found.width && box.left >= 0, `${id} is outside the window`);
  }
}

async function assertAccessible(tab) {
  await tab.page.addScriptTag({ content: await readFile(AXE, "utf8") });
  const violations = await tab.page.evaluate(async () => {
    const result = await globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] });
    return result.violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.map((node) => node.html).join(" | ")}`);
  });
  assert.deepEqual(violations, []);
}

async function assertBackground(tab, colorScheme) {
  const shade = await tab.page.evaluate(() => {
    const [red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
    return (red + green + blue) / 3;
  });
  assert.equal(shade < 128 ? "dark" : "light", colorScheme);
}

test("an answer's markup is drawn, and none of it is markup of the page", async () => {
  const context = await browser.newContext();
  const tab = await Tab.open(context, gateway.ports.http);
  await tab.connected();
  await tab.say(MARKDOWN);
  await tab.state(0, "done");
  const drawn = await tab.page.evaluate(() => {
    const texts = (selector) => [...document.querySelectorAll(`.answer ${selector}`)].map((found) => found.textContent);
    return { strong: texts("strong"), code: texts("p code"), pre: texts("pre"), h2: texts("h2"), items: texts(".item"), i: texts("i") };
  });
  assert.deepEqual(drawn, {
    strong: ["bold"], code: ["code"], pre: ["fn main() {}\n"], h2: ["Heading"], items: ["• one", "• two <i>not markup</i>"], i: [],
  });
  assert.deepEqual(tab.problems, []);
  await context.close();
});

test("a tall message keeps the Send button on a phone with its keyboard open", async () => {
  const context = await browser.newContext({ ...PHONE, viewport: { width: 360, height: 330 } });
  const tab = await Tab.open(context, gateway.ports.http);
  await tab.connected();
  await tab.page.fill("#message", "line\n".repeat(40));
  const box = await tab.page.locator("#send").boundingBox();
  assert.ok(box.y >= 0 && box.y + box.height <= 330, JSON.stringify(box));
  await picture(tab, "phone-keyboard");
  await context.close();
});

/** Notes how long the page does nothing else at most. */
function watchBusy(tab) {
  return tab.page.evaluate(() => {
    globalThis.longest = 0;
    let last = performance.now();
    const tick = () => {
      const now = performance.now();
      globalThis.longest = Math.max(globalThis.longest, now - last);
      last = now;
      setTimeout(tick, 0);
    };
    tick();
  });
}

describe("a very long answer", () => {
  test("arrives whole and leaves the page quick while it streams", async () => {
    const model = await Model.start(function* pieces() {
      for (let line = 0; line < 4_000; line += 1) {
        // Paragraphs, some of them very long, and a block of code that takes a quarter of the answer.
        if (line === 2_000 || line === 3_000) yield "\n```\n";
        yield `Line ${line} `.padEnd(249, "words and more ");
        yield line % 7 === 0 && line % 1_000 > 300 ? "\n\n" : line > 2_000 && line < 3_000 ? "\n" : " ";
      }
    });
    const openAI = { url: `http://127.0.0.1:${model.port}/v1`, model: "long" };
    const long = await Gateway.start({ upstreams: [{ name: "long", type: "OpenAI", openAI }] });
    try {
      const answer = await assertQuick(long);
      assert.equal(answer, model.answer);
      assert.ok(answer.length > 950_000, `${answer.length}`);
    } finally {
      await long.stop();
      model.close();
    }
  });

  test("arrives whole and leaves the page quick when it comes at once, also after a reload", async () => {
    const long = await Gateway.start({ upstreams: [{ name: "demo", type: "Demo", demo: { tokenDelay: "0s", answerBytes: 1_000_000 } }] });
    try {
      assert.equal((await assertQuick(long)).length, 1_000_000);
    } finally {
      await long.stop();
    }
  });

  async function assertQuick(long) {
    const context = await browser.newContext();
    const tab = await Tab.open(context, long.ports.http);
    await tab.connected();
    await watchBusy(tab);
    await tab.say("Tell me everything");
    await tab.page.waitForSelector('#turns > li[data-state="done"]', { timeout: 60_000 });
    const longest = await tab.page.evaluate(() => globalThis.longest);
    console.log(`longest time the page was busy: ${Math.round(longest)} ms`);
    // Some tens of milliseconds on a quiet machine; drawing all of the answer again for each piece would take many seconds.
    assert.ok(longest < 2_000, `the page stood still for ${longest} ms`);
    assert.ok(await tab.page.isHidden("#latest"), "the page lost the end of the answer");
    const [{ answer }] = (await long.session(tab.session)).turns;
    await tab.page.reload();
    const shown = await tab.page.waitForFunction(() => document.querySelector("[data-state=done] .answer")?.textContent);
    // Empty lines and fences are drawn, not written; between blocks there is no character.
    const bare = (text) => text.replaceAll(/```|\s/g, "");
    assert.equal(bare(await shown.jsonValue()), bare(answer));
    assert.deepEqual(tab.problems, []);
    await context.close();
    return answer;
  }
});

test("the page is served with a strict policy", async () => {
  const reply = await get(gateway.ports.http, "/");
  assert.equal(reply.status, 200);
  const policy = reply.headers["content-security-policy"];
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe/);
  assert.equal(reply.headers["x-content-type-options"], "nosniff");
});
