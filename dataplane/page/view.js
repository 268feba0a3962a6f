// Draws the turns of one session. Deltas are gathered and written once a frame.

import { Writer } from "./text.js";
import { outboxNote, turnNote } from "./words.js";

const NEAR_END_PX = 80;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// One turn: what was said, the answer, a note, and what can be done about it.
class TurnView {
  constructor(id) {
    this.root = element("li", "turn");
    this.root.dataset.turn = id;
    const said = element("div", "said");
    said.append(element("span", "unseen", "You: "));
    this.text = said.appendChild(element("span", "text"));
    this.answer = element("div", "answer");
    this.note = element("p", "note");
    this.actions = element("div", "actions");
    this.root.append(said, this.answer, this.note, this.actions);
    this.writer = new Writer(this.answer);
    this.pending = "";
    this.actionsShown = "";
    // The turn whose answer is drawn; a turn that is asked again is another one under the same id.
    this.drawn = null;
  }

  flush() {
    if (this.pending === "") return;
    this.writer.write(this.pending);
    this.pending = "";
  }

  clear() {
    this.pending = "";
    this.writer.clear();
  }

  // Draws the answer of this turn; null for a message that has none yet.
  draw(turn) {
    if (this.drawn === turn) return;
    this.clear();
    this.drawn = turn;
    this.pending = turn?.answer ?? "";
    this.flush();
  }

  setText(text) {
    if (this.text.textContent !== text) this.text.textContent = text;
  }

  setState(state, note) {
    this.root.dataset.state = state;
    this.answer.setAttribute("aria-busy", String(state === "running"));
    if (this.note.textContent !== note) this.note.textContent = note;
    this.note.hidden = note === "";
  }

  // `actions`: [label, run]. Buttons stay as they are while their labels do, so that focus stays too.
  setActions(actions) {
    const shown = actions.map(([label]) => label).join("\n");
    if (shown === this.actionsShown) return;
    this.actionsShown = shown;
    this.actions.replaceChildren(...actions.map(([label, run]) => {
      const button = element("button", "quiet small", label);
      button.type = "button";
      button.addEventListener("click", () => run(button));
      return button;
    }));
  }
}

export class View {
  #list;
  #scroll;
  #latest;
  #do;
  #views = new Map();
  #dirty = new Set();
  #frame = 0;
  #following = true;
  #lastTop = 0;

  /**
   * @param {object} parts the list, what scrolls around it, and the button that leads to its end
   * @param {object} actions what the buttons of a turn do: `again`, `retry`, `edit`, `stop`, `copy`
   */
  constructor({ list, scroll, latest }, actions) {
    this.#list = list;
    this.#scroll = scroll;
    this.#latest = latest;
    this.#do = actions;
    scroll.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    latest.addEventListener("click", () => this.follow());
    const resized = new ResizeObserver(() => this.#stick());
    resized.observe(scroll);
    resized.observe(list);
  }

  /** Draws another session, at its end. */
  show(session) {
    this.#following = true;
    this.redraw(session);
  }

  /** Draws all turns anew; where the reader is in them stays. */
  redraw(session) {
    const top = this.#scroll.scrollTop;
    this.#views.clear();
    this.#dirty.clear();
    this.#list.replaceChildren();
    this.refresh(session);
    if (!this.#following) this.#scroll.scrollTop = top;
  }

  /** Brings order, notes and buttons up to date. */
  refresh(session) {
    const wanted = [];
    for (const turn of session.ordered()) wanted.push(this.#turn(turn));
    for (const item of session.outbox.values()) {
      if (!session.turns.has(item.turn)) wanted.push(this.#item(item));
    }
    const ids = new Set(wanted.map((view) => view.root.dataset.turn));
    for (const [id, view] of this.#views) {
      if (ids.has(id)) continue;
      view.root.remove();
      this.#views.delete(id);
    }
    let at = this.#list.firstChild;
    for (const view of wanted) {
      if (view.root === at) at = at.nextSibling;
      else this.#list.insertBefore(view.root, at);
    }
    this.#stick();
  }

  /** A turn's text grew. */
  grow(turn, text) {
    const view = this.#views.get(turn.id);
    if (!view) return;
    const first = view.pending === "" && view.answer.firstChild === null;
    view.pending += text;
    this.#dirty.add(view);
    if (first) this.#update(view, turn);
    this.#schedule();
  }

  /** A turn's text so far is void. */
  reset(turn) {
    this.#views.get(turn.id)?.clear();
    this.note(turn);
  }

  /** A turn's state changed. */
  note(turn) {
    const view = this.#views.get(turn.id);
    if (view) this.#update(view, turn);
    this.#stick();
  }

  /** Goes to the end and stays there. */
  follow() {
    this.#following = true;
    this.#stick();
  }

  #turn(turn) {
    let view = this.#views.get(turn.id);
    if (!view) {
      view = new TurnView(turn.id);
      this.#views.set(turn.id, view);
    }
    view.draw(turn);
    view.setText(turn.text);
    this.#update(view, turn);
    return view;
  }

  #update(view, turn) {
    if (turn.state !== "running") {
      view.flush();
      view.writer.end();
    }
    view.setState(turn.state, turnNote(turn));
    const actions = [];
    if (turn.state === "failed" || turn.state === "lost") actions.push(["Ask again", () => this.#do.again(turn)]);
    if (turn.state !== "running" && turn.answer !== "") actions.push(["Copy", (button) => this.#do.copy(turn, button)]);
    view.setActions(actions);
  }

  #item(item) {
    let view = this.#views.get(item.turn);
    if (!view) {
      view = new TurnView(item.turn);
      this.#views.set(item.turn, view);
    }
    view.draw(null);
    view.setText(item.text);
    view.setState(item.state === "refused" ? "refused" : "waiting", outboxNote(item));
    const actions = [];
    if (item.state === "refused") {
      if (item.problem.retryable) actions.push(["Try again", () => this.#do.retry(item)]);
      actions.push(["Edit", () => this.#do.edit(item)]);
    } else if (item.state === "queued" && !item.stopping) {
      actions.push(["Stop", () => this.#do.stop(item)]);
    }
    view.setActions(actions);
    return view;
  }

  #schedule() {
    if (this.#frame !== 0) return;
    const run = () => {
      this.#frame = 0;
      for (const view of this.#dirty) view.flush();
      this.#dirty.clear();
      this.#stick();
    };
    // A page in the background is given no frames; its text is kept up all the same, only less often.
    this.#frame = document.hidden ? setTimeout(run, 500) : requestAnimationFrame(run);
  }

  #atEnd() {
    return this.#scroll.scrollHeight - this.#scroll.scrollTop - this.#scroll.clientHeight < NEAR_END_PX;
  }

  // Only a move upwards is the user's wish to leave the end; the end itself moves down by growing.
  #scrolled() {
    const top = this.#scroll.scrollTop;
    if (this.#atEnd()) this.#following = true;
    else if (top < this.#lastTop - 1) this.#following = false;
    this.#lastTop = top;
    this.#latest.hidden = this.#following;
  }

  #stick() {
    if (this.#following) this.#scroll.scrollTop = this.#scroll.scrollHeight;
    this.#latest.hidden = this.#following || this.#atEnd();
  }
}
