// Server-sent events. They reconnect by themselves, since a browser gives up after some errors, and does not notice
// a connection that fell silent.

const SILENCE_MS = 12000; // the service says something every five seconds
const RETRY_MS = [500, 1000, 2000, 5000];

/**
 * Call `onTick` for each event, `onState` with "live" or "lost".
 * @param {string} url
 * @param {(tick: {now: number, frames: number}) => void} onTick
 * @param {(state: "live"|"lost") => void} onState
 * @returns {() => void} stop
 */
export function follow(url, onTick, onState) {
  let source = null;
  let watchdog = 0;
  let retry = 0;
  let failures = 0;

  const open = () => {
    clearTimeout(retry);
    source?.close();
    source = new EventSource(url);
    source.addEventListener("tick", (event) => {
      failures = 0;
      guard();
      onState("live");
      onTick(JSON.parse(event.data));
    });
    source.onerror = lost;
    guard();
  };
  const guard = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, SILENCE_MS);
  };
  const lost = () => {
    clearTimeout(watchdog);
    source?.close();
    onState("lost");
    retry = setTimeout(open, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
  };

  open();
  return () => {
    clearTimeout(watchdog);
    clearTimeout(retry);
    source?.close();
  };
}
