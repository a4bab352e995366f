// Numbers and instants as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
const date = new Intl.DateTimeFormat("en", { dateStyle: "medium" });
const offset = new Intl.DateTimeFormat("en", { timeZoneName: "shortOffset" });
const minutes = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** 12,345 */
export const count = (n) => whole.format(n);
/** 12.3K from ten thousand on */
export const compact = (n) => (Math.abs(n) < 10000 ? (Math.abs(n) < 10 && n % 1 ? n.toFixed(1) : whole.format(n)) : short.format(n));
/** A share as 0.39 % */
export const percent = (x, digits = 2) => `${(100 * x).toFixed(digits)} %`;
/** A measure with three decimals, or a dash when there is no sample. */
export const measure = (x) => (x === null || x === undefined ? "–" : x.toFixed(3));
/** A measure by its unit: a whole number of ranks or experts as it is, everything else with three decimals. */
export const measured = (x, unit) => (unit === "number" && Number.isInteger(x) ? count(x) : measure(x));
/** 2.10× */
export const times = (x) => `${x.toFixed(2)}×`;
let today = () => new Date();
/** From now on "today" is the day of the service's clock; the browser's may be wrong. @param {number} unixSeconds */
export function setServiceTime(unixSeconds) {
  today = () => new Date(unixSeconds * 1000);
}
const sameDay = (a, b) => date.format(a) === date.format(b);
/** 14:03:12, local time; with its date where that is not today's. */
export function time(unixSeconds) {
  const at = new Date(unixSeconds * 1000);
  return (sameDay(at, today()) ? clock : day).format(at);
}
/** 14:03:12 to 14:04:12, local time; with dates where it spans midnight or is not of today. */
export function span(start, end) {
  const [from, to] = [new Date(start * 1000), new Date(end * 1000)];
  return sameDay(from, to) ? `${time(start)} to ${clock.format(to)}` : `${day.format(from)} to ${day.format(to)}`;
}
/** The time zone of all of these, as Europe/Berlin (GMT+1). */
export function timeZone() {
  const part = offset.formatToParts(new Date()).find(({ type }) => type === "timeZoneName");
  return `${offset.resolvedOptions().timeZone} (${part?.value})`;
}
/** Nov 14, 2023, 14:03:12, local time. */
export const instant = (unixSeconds) => day.format(new Date(unixSeconds * 1000));
/** 14:03, local time. */
export const minute = (unixSeconds) => minutes.format(new Date(unixSeconds * 1000));
/** A number of things: 1 rank, 2 ranks. */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** 42 s, 3 min, 2 h */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 360) / 10} h`;
}

/** 1, 2 and 5 to 7 as 1–2, 5–7 */
export function ranges(ids) {
  const parts = [];
  for (let i = 0; i < ids.length; ) {
    let j = i;
    while (j + 1 < ids.length && ids[j + 1] === ids[j] + 1) j++;
    parts.push(i === j ? `${ids[i]}` : `${ids[i]}–${ids[j]}`);
    i = j + 1;
  }
  return parts.join(", ");
}

/** Accepted drafts of a trace, of all that were computed for it; empty: none were. */
export function draftsOf(trace) {
  const all = trace.accepted_drafts + trace.rejected_drafts;
  return all ? `${count(trace.accepted_drafts)} of ${count(all)}` : "";
}
