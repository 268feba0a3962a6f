// What this browser remembers: the list of conversations (shared by its tabs), and per tab what was typed or not handed in
// yet. Storage may be full or forbidden; the page works without it.

const LIST_KEY = "chatgateway.sessions";
const LIST_MAX = 100;
const TITLE_MAX = 80;

function read(storage, key, fallback) {
  try {
    return JSON.parse(window[storage].getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

function write(storage, key, value) {
  try {
    if (value === null) window[storage].removeItem(key);
    else window[storage].setItem(key, JSON.stringify(value));
  } catch {
    // Nothing to do: it is only not remembered.
  }
}

/** Known sessions, the last used first: `{id, title, at}`. */
export function sessions() {
  const list = read("localStorage", LIST_KEY, []);
  return Array.isArray(list) ? list.filter((s) => typeof s?.id === "string" && typeof s.title === "string") : [];
}

/** Puts a session at the head of the list. Its first title stays. */
export function remember(id, title) {
  const list = sessions();
  const known = list.find((s) => s.id === id);
  const line = title.trim().split("\n", 1)[0];
  const short = line.length > TITLE_MAX ? `${line.slice(0, TITLE_MAX)}…` : line;
  const entry = { id, title: known?.title || short, at: Date.now() };
  write("localStorage", LIST_KEY, [entry, ...list.filter((s) => s.id !== id)].slice(0, LIST_MAX));
}

/** Takes a session off the list. */
export function forget(id) {
  write("localStorage", LIST_KEY, sessions().filter((s) => s.id !== id));
}

/** Calls `run` when another tab changed the list. */
export function onSessionsChanged(run) {
  window.addEventListener("storage", (event) => {
    if (event.key === LIST_KEY || event.key === null) run();
  });
}

/** Turns of a session that this tab has not seen accepted: `[{turn, text}]`. */
export function outbox(id) {
  const list = read("sessionStorage", `chatgateway.outbox.${id}`, []);
  return Array.isArray(list) ? list.filter((i) => typeof i?.turn === "string" && typeof i.text === "string") : [];
}

/** Keeps them over a reload. */
export function keepOutbox(id, items) {
  write("sessionStorage", `chatgateway.outbox.${id}`, items.length > 0 ? items : null);
}

/** What was typed and not sent. */
export function draft(id) {
  const text = read("sessionStorage", `chatgateway.draft.${id}`, "");
  return typeof text === "string" ? text : "";
}

/** Keeps it over a reload. */
export function keepDraft(id, text) {
  write("sessionStorage", `chatgateway.draft.${id}`, text === "" ? null : text);
}
