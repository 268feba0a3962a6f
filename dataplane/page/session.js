// What this page knows of one session: its turns, the turns it still has to hand in, and the position in the session's log
// up to which all of that is true. No I/O: frames and snapshots come in, changes go out.
//
// The log is told in order and each entry has an id `<epoch>-<n>`. An entry is taken only if its id is above the last one
// taken, so an entry that arrives twice changes nothing. That no entry is missing is the server's promise (`recovered`).

/** Turn states in which the answer can still grow. */
export const OPEN_STATES = new Set(["running", "queued"]);

/** Reads an entry id into its two numbers. Anything that is not an id reads as null. */
export function parseId(text) {
  if (text === "0") return [0n, 0n];
  const parts = /^(\d{1,20})-(\d{1,20})$/.exec(text);
  return parts ? [BigInt(parts[1]), BigInt(parts[2])] : null;
}

/** Compares two entry ids by their two numbers: below 0, 0 or above 0. */
export function compareIds(a, b) {
  const [x, y] = [parseId(a), parseId(b)];
  if (x === null || y === null) throw new TypeError(`not an entry id: ${x === null ? a : b}`);
  if (x[0] !== y[0]) return x[0] < y[0] ? -1 : 1;
  if (x[1] !== y[1]) return x[1] < y[1] ? -1 : 1;
  return 0;
}

function newTurn(id, era, seq, text) {
  return { id, era, seq, text, answer: "", state: "running", error: null, takeovers: 0, resets: 0, stopping: false };
}

export class Session {
  constructor(id) {
    this.id = id;
    /** The id of the last entry taken; null while nothing is known. */
    this.position = null;
    /** Turn id → turn, as the server told them. */
    this.turns = new Map();
    /** Turn id → what this page has to hand in, or has handed in without seeing it in the log yet. */
    this.outbox = new Map();
    /** `idle`, `loading`, `resuming` or `live`: how this session stands on the present connection. */
    this.phase = "idle";
    this.deleted = false;
    /** Whether the server has lost what this page knew of the session. */
    this.forgotten = false;
    // Turns of a session that began anew count from 1 again; the era keeps them below the ones before.
    this.era = 0;
  }

  /** The turns in the order in which they are shown. */
  ordered() {
    return [...this.turns.values()].sort((a, b) => a.era - b.era || a.seq - b.seq);
  }

  /** The turn whose answer is being written, if one is. */
  running() {
    for (const turn of this.turns.values()) if (turn.state === "running") return turn;
    return null;
  }

  /** Takes a snapshot in place of all that was known of the log. Returns whether the server had lost something. */
  takeSnapshot(snapshot) {
    const told = snapshot.turns;
    const before = this.#present();
    const lost = this.#lostBy(told, before);
    if (lost === before && before.length > 0) this.era += 1;
    for (const turn of lost) this.#lose(turn);
    for (const t of told) {
      const known = this.turns.get(t.turn);
      const turn = newTurn(t.turn, known && !known.lost ? known.era : this.era, t.seq, t.text ?? "");
      turn.answer = t.answer ?? "";
      turn.state = t.state;
      if (known?.state === t.state) turn.error = known.error;
      this.turns.set(t.turn, turn);
      if (t.state !== "queued") this.outbox.delete(t.turn);
    }
    if (lost !== before && lost.length > 0) this.era += 1;
    this.position = snapshot.position;
    this.forgotten = lost.length > 0;
    return this.forgotten;
  }

  /** The server has no such session. Returns whether that is a loss. */
  takeNothing() {
    const before = this.#present();
    for (const turn of before) this.#lose(turn);
    if (before.length > 0) this.era += 1;
    this.position = "0";
    this.forgotten = before.length > 0;
    return this.forgotten;
  }

  /** Takes an entry of the log. Returns what changed, or null where it was taken before. */
  apply(entry) {
    if (this.position === null || compareIds(entry.id, this.position) <= 0) return null;
    this.position = entry.id;
    if (entry.type === "turn") return this.#begin(entry);
    let turn = this.turns.get(entry.turn);
    if (!turn) {
      turn = newTurn(entry.turn, this.era, this.#nextSeq(), "");
      this.turns.set(turn.id, turn);
    }
    switch (entry.type) {
      case "delta":
        turn.answer += entry.text;
        return { kind: "delta", turn, text: entry.text };
      case "reset":
        turn.answer = "";
        turn.resets += 1;
        return { kind: "reset", turn };
      case "takeover":
        turn.takeovers += 1;
        return { kind: "turn", turn };
      case "done":
        turn.finishReason = entry.finish_reason;
        turn.usage = entry.usage;
        return this.#end(turn, "done");
      case "cancelled":
        return this.#end(turn, "cancelled");
      case "error":
        turn.error = { code: entry.code, message: entry.message };
        return this.#end(turn, "failed");
      default:
        return null; // A kind of entry that came after this page was written: its place in the log is kept.
    }
  }

  #begin(entry) {
    const turn = newTurn(entry.turn, this.era, entry.seq, entry.text);
    this.turns.set(turn.id, turn);
    this.outbox.delete(turn.id);
    return { kind: "begin", turn };
  }

  #end(turn, state) {
    turn.state = state;
    turn.stopping = false;
    for (const item of this.outbox.values()) if (item.place > 1) item.place -= 1;
    return { kind: "end", turn };
  }

  #nextSeq() {
    return this.#present().reduce((last, turn) => Math.max(last, turn.seq), 0) + 1;
  }

  // The turns that the server is held to have; what it lost before is shown, but no longer compared.
  #present() {
    return [...this.turns.values()].filter((turn) => !turn.lost);
  }

  // Which of `before` a server that tells `told` has lost. A turn older than all that is told has only left the history.
  #lostBy(told, before) {
    if (before.length === 0) return [];
    const ids = new Set(told.map((t) => t.turn));
    const common = before.filter((turn) => ids.has(turn.id));
    const lastKnown = Math.max(...before.map((turn) => turn.seq));
    const firstTold = told.length > 0 ? Math.min(...told.map((t) => t.seq)) : 0;
    if (common.length === 0) return firstTold > lastKnown ? [] : before;
    const lastCommon = Math.max(...common.map((turn) => turn.seq));
    return before.filter((turn) => !ids.has(turn.id) && turn.seq > lastCommon);
  }

  #lose(turn) {
    turn.lost = true;
    turn.stopping = false;
    if (OPEN_STATES.has(turn.state)) turn.state = "lost";
  }
}
