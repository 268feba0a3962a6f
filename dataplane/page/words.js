// What the page says: connection states, refusals and failures in plain words.

const REASONS = {
  invalid_request: "The server did not understand the message.",
  unauthenticated: "You are not signed in, or your sign-in has ended.",
  permission_denied: "You are not allowed to do this.",
  not_found: "There is no such conversation or message.",
  turn_conflict: "A message with this id but another text was sent before.",
  seq_gap: "The message came out of order.",
  not_resumable: "The server no longer has this part of the conversation.",
  too_large: "The message is too long for the server.",
  rate_limited: "Too many messages in a short time.",
  session_busy: "Too many messages already wait in this conversation.",
  overloaded: "The server is busy right now.",
  draining: "This server is about to restart.",
  store_unavailable: "The server cannot reach its storage right now.",
  circuit_open: "The model is having trouble and is given a short rest.",
  upstream_unavailable: "The model cannot be reached.",
  upstream_timeout: "The model took too long to answer.",
  internal: "Something went wrong in the server.",
};

/** The server lost what this page still shows. */
export const FORGOTTEN = "The server no longer has all of this conversation: it restarted without its data, or the "
  + "conversation expired. You can go on, but the model does not know what it lost.";

/** Seconds of a wait, as a person counts them. */
export function seconds(ms) {
  return Math.max(1, Math.ceil(ms / 1000));
}

/** Why something was refused or failed; the server's own message where it says more. */
export function reason(problem) {
  const known = REASONS[problem.code];
  const detail = problem.message && problem.message !== problem.code ? problem.message : "";
  if (!known) return detail || "The server gave no reason.";
  return detail ? `${known} (${detail})` : known;
}

/** A refused message: why, and whether trying again may help. */
export function refusal(problem) {
  const again = problem.retryable
    ? problem.retry_after_ms ? `You can try again in ${seconds(problem.retry_after_ms)} s.` : "You can try again."
    : "";
  return `Not sent. ${reason(problem)} ${again}`.trim();
}

/** The connection's state. `now` and `untilMs` are milliseconds on the same clock. */
export function connection(state, now, online) {
  switch (state.name) {
    case "connected":
      return "Connected";
    case "leaving":
      return "Server restarts, moving over";
    case "waiting":
      if (!online) return "You are offline";
      return `Reconnecting in ${seconds(state.untilMs - now)} s`;
    case "refused":
      return "Not connected";
    default:
      return online ? "Connecting…" : "You are offline";
  }
}

/** More about a connection that is not there, or an empty text. */
export function connectionDetail(state) {
  if (state.name === "refused") {
    const why = REASONS[state.reason] ?? (state.reason ? `The server said: ${state.reason}.` : "The server closed the connection for good.");
    return `${why} The page will not reconnect by itself.`;
  }
  if (state.name !== "waiting") return "";
  switch (state.code) {
    case 1001:
    case 1012:
      return "The server is restarting. Nothing is lost: the conversation goes on as soon as it is back.";
    case 1013:
      return "The server has no room for more connections right now.";
    case 3008:
      return "This page read too slowly and fell behind; it will catch up.";
    case 0:
      return `Connection lost: ${state.reason}.`;
    default:
      return "The connection was lost. Messages you send are kept and handed in when it is back.";
  }
}

/** What stands under a turn. Empty where there is nothing to say. */
export function turnNote(turn) {
  const notes = [];
  if (turn.state === "running") {
    if (turn.stopping) notes.push("Stopping…");
    else if (turn.answer === "") notes.push(turn.resets > 0 ? "Starting over…" : "Thinking…");
  }
  if (turn.state === "queued") notes.push("Waiting for its turn");
  if (turn.state === "cancelled") notes.push("Stopped");
  if (turn.state === "failed") notes.push(`${turn.answer === "" ? "No answer." : "The answer broke off."} ${turn.error ? reason(turn.error) : ""}`.trim());
  if (turn.state === "lost") notes.push("The server no longer has this message, so its answer will not come.");
  if (turn.finishReason === "length") notes.push("Cut off: the answer reached its length limit");
  if (turn.takeovers > 0) notes.push("continued by another server");
  else if (turn.resets > 0 && turn.answer !== "") notes.push("answered anew");
  return notes.join(" · ");
}

/** What stands under a message that the server has not taken yet. */
export function outboxNote(item) {
  if (item.state === "refused") return refusal(item.problem);
  if (item.stopping) return "Stopping…";
  if (item.state === "queued") return item.place === 1 ? "Waiting: next in line" : `Waiting: number ${item.place} in line`;
  if (item.state === "waiting") return "Will be sent when connected";
  return "Sending…";
}
