// Puts the page together: the connection, the sessions, what is drawn, and what the user does.

import { Link, SUBPROTOCOL } from "./link.js";
import { Sync } from "./sync.js";
import { View } from "./view.js";
import * as storage from "./storage.js";
import * as words from "./words.js";

const LOAD_TIMEOUT_MS = 15_000;
const ANNOUNCED_CHARACTERS = 600;
const SESSION_ID_MAX_BYTES = 256;

const $ = (id) => document.getElementById(id);
const message = $("message");

let session = null;
let linkState = { name: "connecting" };
let lastAnnounced = "";

/** A random id in the form of a UUID. `crypto.randomUUID` is there in secure contexts only. */
function randomId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

function validSessionId(id) {
  const bytes = new TextEncoder().encode(id).length;
  return bytes >= 1 && bytes <= SESSION_ID_MAX_BYTES && id !== "." && id !== ".." && !/\p{Cc}/u.test(id);
}

// ---- Notices and words ----

/** Shows a notice under a key, or takes it away where the text is empty. */
function notice(key, text, action) {
  let box = document.querySelector(`[data-notice="${key}"]`);
  if (text === "") return void box?.remove();
  if (!box) {
    box = document.createElement("div");
    box.className = "notice";
    box.dataset.notice = key;
    box.append(document.createElement("p"));
    $("notices").append(box);
  }
  if (box.firstChild.textContent !== text) box.firstChild.textContent = text;
  box.querySelector("button")?.remove();
  const [label, run] = action ?? ["Dismiss", () => box.remove()];
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet small";
  button.textContent = label;
  button.addEventListener("click", run);
  box.append(button);
}

/** Says something to screen readers. */
function announce(text) {
  if (text === lastAnnounced) return;
  lastAnnounced = text;
  $("status").textContent = text;
}

function showConnection() {
  const text = words.connection(linkState, Date.now(), navigator.onLine);
  $("connection-words").textContent = text;
  $("connection").dataset.state = linkState.name;
}

function onLinkState(state) {
  const before = linkState.name;
  linkState = state;
  showConnection();
  const detail = words.connectionDetail(state);
  if (state.name === "connected") notice("connection", "");
  else if (detail !== "") notice("connection", detail, ["Connect now", () => link.hurry()]);
  if (state.name === before) return;
  if (state.name === "connected") announce("Connected.");
  else if (state.name === "waiting" || state.name === "refused") announce(detail);
}

// ---- The server ----

async function problemOf(response) {
  try {
    const body = await response.json();
    return words.reason({ code: body.code, message: body.detail ?? body.message ?? body.title });
  } catch {
    return `The server answered ${response.status}.`;
  }
}

const sessionUrl = (id) => `v1/sessions/${encodeURIComponent(id)}`;

async function loadSnapshot(id) {
  let response;
  try {
    response = await fetch(sessionUrl(id), {
      headers: { accept: "application/json" },
      cache: "no-store",
      signal: AbortSignal.timeout(LOAD_TIMEOUT_MS),
    });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(await problemOf(response));
  notice("load", "");
  return response.json();
}

const sync = new Sync({
  load: loadSnapshot,
  later: (ms, run) => setTimeout(run, ms),
  changed: onChanged,
  notify: (kind, detail) => {
    if (kind === "error") return notice("error", words.reason(detail));
    if (detail.session !== session) return undefined;
    return notice("load", `${detail.message} Loading the conversation again in ${words.seconds(detail.waitMs)} s.`);
  },
});

const link = new Link({
  dial: () => {
    const url = new URL("ws", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.hash = "";
    return new WebSocket(url, SUBPROTOCOL);
  },
  up: (send, hello) => sync.linkUp(send, hello),
  down: (closed) => sync.linkDown(closed.code === 1009),
  frame: (frame) => (frame.type === "go_away" ? sync.leaving() : sync.frame(frame)),
  state: onLinkState,
});

// ---- What is drawn ----

const view = new View({ list: $("turns"), scroll: $("scroll"), latest: $("latest") }, {
  again: (turn) => {
    // A failed turn is over: another attempt is another turn. A lost one is unknown to the server: the same turn again.
    sync.submit(session, turn.state === "lost" ? turn.id : randomId(), turn.text);
    view.follow();
  },
  retry: (item) => sync.retry(session, item.turn),
  edit: (item) => {
    message.value = [sync.withdraw(session, item.turn), message.value].filter(Boolean).join("\n\n");
    onTyped();
    message.focus();
  },
  stop: (item) => sync.cancel(session, item.turn),
  copy: (turn, button) => copy(turn.answer, button),
});

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copying is not allowed here";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2_000);
}

function onChanged(changed, change) {
  if (change.kind !== "delta") keepOutbox(changed);
  if (change.kind === "deleted") storage.forget(changed.id);
  if (changed === session) draw(change);
}

function keepOutbox(changed) {
  const kept = [...changed.outbox.values()].filter((item) => item.state !== "refused");
  storage.keepOutbox(changed.id, kept.map(({ turn, text }) => ({ turn, text })));
}

function draw(change) {
  switch (change.kind) {
    case "delta":
      view.grow(change.turn, change.text);
      return;
    case "reset":
      view.reset(change.turn);
      break;
    case "all":
      view.redraw(session);
      if (change.lost) notice("forgotten", words.FORGOTTEN);
      listIfUnknown();
      break;
    case "end":
      announceEnd(change.turn);
      view.refresh(session);
      break;
    default:
      view.refresh(session);
  }
  if (change.kind === "begin") storage.remember(session.id, change.turn.text);
  drawFrame();
}

// A conversation that was opened by its id belongs on the list, too.
function listIfUnknown() {
  const [first] = session.ordered();
  if (first && !storage.sessions().some((known) => known.id === session.id)) storage.remember(session.id, first.text);
}

// All around the turns: title, notices, buttons.
function drawFrame() {
  const any = session.turns.size > 0 || session.outbox.size > 0;
  const first = session.ordered()[0]?.text ?? session.outbox.values().next().value?.text ?? "";
  const known = storage.sessions().find((s) => s.id === session.id);
  const title = known?.title || first.split("\n", 1)[0].slice(0, 80) || "New conversation";
  $("title").textContent = title;
  document.title = any ? `${title} · ChatGateway` : "ChatGateway";
  $("empty").hidden = any || session.deleted || (session.position === null && Boolean(known));
  $("delete").hidden = !any || session.deleted;
  const running = session.running();
  $("stop").hidden = running === null;
  $("stop").disabled = running?.stopping ?? false;
  message.disabled = session.deleted;
  $("send").disabled = session.deleted || message.value.trim() === "";
  const fresh = ["New conversation", () => go(randomId(), true)];
  notice("deleted", session.deleted ? "This conversation was deleted." : "", fresh);
  drawSessions();
}

function announceEnd(turn) {
  const note = words.turnNote(turn);
  const text = turn.answer.slice(0, ANNOUNCED_CHARACTERS);
  announce(turn.state === "done" ? `Answer: ${text}` : `${note}. ${text}`);
}

let sessionsDrawn = "";
function drawSessions() {
  const list = storage.sessions();
  const key = JSON.stringify([session?.id, list.map((s) => [s.id, s.title])]);
  if (key === sessionsDrawn) return;
  sessionsDrawn = key;
  $("no-sessions").hidden = list.length > 0;
  $("sessions").replaceChildren(...list.map((known) => {
    const line = document.createElement("li");
    const anchor = line.appendChild(document.createElement("a"));
    anchor.href = `#${encodeURIComponent(known.id)}`;
    anchor.textContent = known.title || known.id;
    if (known.id === session?.id) anchor.setAttribute("aria-current", "page");
    anchor.addEventListener("click", closeDrawer);
    return line;
  }));
}

// ---- Which session ----

const freshIds = new Set();

function go(id, fresh = false) {
  if (fresh) freshIds.add(id);
  closeDrawer();
  location.hash = encodeURIComponent(id);
}

function idFromHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function openFromHash() {
  let id = idFromHash();
  if (!validSessionId(id)) {
    if (id !== "") notice("error", "The address names no valid conversation; this is a new one.");
    id = randomId();
    freshIds.add(id);
    history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  }
  if (session?.id === id) return;
  // A session that still has something to hand in stays, others are read again when they are opened again.
  if (session && session.outbox.size === 0) sync.drop(session.id);
  for (const key of ["load", "error", "forgotten"]) notice(key, "");
  const stored = storage.outbox(id);
  session = sync.open(id, freshIds.has(id));
  view.show(session);
  for (const { turn, text } of stored) {
    if (!session.outbox.has(turn) && !session.turns.has(turn)) sync.submit(session, turn, text);
  }
  message.value = storage.draft(id);
  fitMessage();
  drawFrame();
  if (matchMedia("(pointer: fine)").matches) message.focus();
}

// ---- What the user does ----

function fitMessage() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight + 2}px`;
}

function onTyped() {
  storage.keepDraft(session.id, message.value);
  $("send").disabled = session.deleted || message.value.trim() === "";
  fitMessage();
}

function send() {
  const text = message.value.trim();
  if (text === "" || session.deleted) return;
  message.value = "";
  onTyped();
  storage.remember(session.id, text);
  sync.submit(session, randomId(), text);
  view.follow();
  drawFrame();
}

function stop() {
  const running = session.running();
  if (running && !running.stopping) sync.cancel(session, running.id);
  drawFrame();
}

async function deleteSession() {
  const doomed = session;
  let response;
  try {
    response = await fetch(sessionUrl(doomed.id), { method: "DELETE", signal: AbortSignal.timeout(LOAD_TIMEOUT_MS) });
  } catch {
    return notice("error", "Not deleted: the server cannot be reached.");
  }
  if (!response.ok) return notice("error", `Not deleted. ${await problemOf(response)}`);
  sync.deleted(doomed);
  sync.drop(doomed.id);
  storage.keepDraft(doomed.id, "");
  announce("The conversation was deleted.");
  if (session === doomed) go(randomId(), true);
  return undefined;
}

function openDrawer() {
  document.body.classList.add("drawer-open");
  $("scrim").hidden = false;
  $("menu").setAttribute("aria-expanded", "true");
  $("close-drawer").focus();
}

function closeDrawer() {
  if (!document.body.classList.contains("drawer-open")) return;
  document.body.classList.remove("drawer-open");
  $("scrim").hidden = true;
  $("menu").setAttribute("aria-expanded", "false");
  $("menu").focus();
}

function onEscape() {
  if (document.body.classList.contains("drawer-open")) closeDrawer();
  else if (!$("confirm").open) stop();
}

// A keyboard on the screen covers the page in browsers that do not resize it: keep to what is visible.
function fitViewport() {
  const visible = window.visualViewport;
  if (!visible || visible.scale > 1.01) return;
  document.documentElement.style.setProperty("--visible-height", `${visible.height}px`);
}

message.addEventListener("input", onTyped);
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
  message.focus();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => go(randomId(), true));
$("menu").addEventListener("click", openDrawer);
$("close-drawer").addEventListener("click", closeDrawer);
$("scrim").addEventListener("click", closeDrawer);
$("delete").addEventListener("click", () => $("confirm").showModal());
$("confirm").addEventListener("close", () => {
  if ($("confirm").returnValue === "delete") deleteSession();
  $("confirm").returnValue = "";
});
$("open-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = $("open-id").value;
  if (!validSessionId(id)) return;
  $("open-id").value = "";
  go(id);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) onEscape();
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && linkState.name !== "refused") link.hurry();
});
window.addEventListener("online", () => link.hurry());
window.addEventListener("offline", showConnection);
window.addEventListener("hashchange", openFromHash);
window.visualViewport?.addEventListener("resize", fitViewport);
storage.onSessionsChanged(drawSessions);
setInterval(() => {
  if (linkState.name === "waiting") showConnection();
}, 500);

fitViewport();
openFromHash();
link.start();
