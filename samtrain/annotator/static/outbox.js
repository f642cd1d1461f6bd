// Writes what people did, one thing after the other, in the order in which they did it. A write is repeated until the server
// answers; a refusal ends that write alone.

/** Returns {add, idle, waiting}. `onChange` is called when the number of waiting writes changes. */
export function createOutbox(onChange) {
  let last = Promise.resolve();
  let waiting = 0;

  return {
    /** Adds a write, a function that returns a promise; returns the promise of its result. `counts`: people wait for it. */
    add(write, counts = true) {
      waiting += counts;
      onChange();
      const result = last.then(write);
      last = result.catch(() => {}).then(() => {
        waiting -= counts;
        onChange();
      });
      return result;
    },
    idle: () => last,
    waiting: () => waiting,
  };
}
