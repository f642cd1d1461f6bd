// Seconds of work on one mask. Time in which nothing happens counts up to a limit (20 s) and no further, so that a coffee break
// is not work. Times are milliseconds of one clock, given by the caller.

/** Returns a clock that starts now. */
export function startClock(now, seconds = 0) {
  return { worked: seconds * 1000, last: now };
}

/** Returns the clock after something happened: a key, a movement, an answer. */
export function touch(clock, now, idleSeconds) {
  return { worked: clock.worked + counted(clock, now, idleSeconds), last: Math.max(now, clock.last) };
}

/** Returns the seconds of work until now. */
export function secondsOf(clock, now, idleSeconds) {
  return (clock.worked + counted(clock, now, idleSeconds)) / 1000;
}

function counted(clock, now, idleSeconds) {
  return Math.min(Math.max(now - clock.last, 0), idleSeconds * 1000);
}

/** Returns "ok", "soon" (the last third of the time) or "over"; always "ok" without a limit. */
export function stateOf(seconds, limit) {
  if (!limit) return "ok";
  if (seconds >= limit) return "over";
  return seconds >= (limit * 2) / 3 ? "soon" : "ok";
}
