// What the server tells on its own: the state of the work, a new model, how far the encoder is. If the stream breaks, the page asks.

const POLL = 4000; // ms

/** Listens; handlers: status(value), model(value), encoding(value), work(value), connection(isUp). */
export function listenToServer(api, handlers) {
  let up = true;
  const setUp = (value) => {
    if (value !== up) handlers.connection(value);
    up = value;
  };

  const stream = new EventSource("/api/events");
  for (const kind of ["status", "model", "encoding", "work"]) {
    stream.addEventListener(kind, (event) => {
      setUp(true);
      handlers[kind](JSON.parse(event.data));
    });
  }
  stream.onopen = () => setUp(true);

  setInterval(async () => {
    if (stream.readyState === EventSource.OPEN) return;
    try {
      handlers.status(await api.call("GET", "/api/status"));
      setUp(true);
    } catch (error) {
      if (error.status === 0) setUp(false);
    }
  }, POLL);
  return { close: () => stream.close() };
}
