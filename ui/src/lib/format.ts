/** Numbers as people read them. Nothing is rounded to zero: what is unknown is an en dash. */

export const NONE = "–";

const UNITS: [number, string][] = [
  [1e9, "s"],
  [1e6, "ms"],
  [1e3, "µs"],
  [1, "ns"],
];

/** A duration with three significant digits: `842 ns`, `12.4 µs`, `1.83 s`, `2 min 05 s`. */
export function duration(ns: number | null | undefined): string {
  if (ns === null || ns === undefined) return NONE;
  if (ns === 0) return "0";
  if (ns >= 60e9) {
    const seconds = Math.round(ns / 1e9);
    return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
  }
  for (const [size, unit] of UNITS) {
    if (ns < size) continue;
    const value = ns / size;
    return `${value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 1 : 2)} ${unit}`;
  }
  return `${ns} ns`;
}

/** A round time on an axis: `50 µs`, `2 s`. */
export function tick(ns: number): string {
  return duration(ns).replace(/(\.\d*?)0+(?= )/, "$1").replace(/\.(?= )/, "");
}

/** US dollars with at least two significant digits: `$0.00042`, `$1.20`. */
export function dollars(usd: number | null | undefined): string {
  if (usd === null || usd === undefined) return NONE;
  if (usd === 0) return "$0";
  const digits = usd >= 0.1 ? 2 : Math.min(8, 1 - Math.floor(Math.log10(usd)));
  return `$${usd.toFixed(digits)}`;
}

export function count(n: number | null | undefined): string {
  return n === null || n === undefined ? NONE : n.toLocaleString("en-US");
}

/** A size in binary units with three significant digits: `49.1 KB`. */
export function bytes(n: number): string {
  let value = n;
  for (const unit of ["bytes", "KB", "MB", "GB"]) {
    if (value < 1024 || unit === "GB") return `${unit === "bytes" || value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 1 : 2)} ${unit}`;
    value /= 1024;
  }
  return NONE;
}

function dateOf(ns: string): Date {
  return new Date(Number(BigInt(ns) / 1_000_000n));
}

const two = (n: number) => String(n).padStart(2, "0");

/** Local time of day, to the second. */
export function clock(ns: string): string {
  const d = dateOf(ns);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
}

/** Local day (`11-22`) where it is not today, else nothing. */
export function day(ns: string, now = new Date()): string {
  const d = dateOf(ns);
  if (d.toDateString() === now.toDateString()) return "";
  return `${d.getFullYear() === now.getFullYear() ? "" : `${d.getFullYear()}-`}${two(d.getMonth() + 1)}-${two(d.getDate())}`;
}

/** Local date and time with the ns that a computer wrote, and the zone. */
export function instant(ns: string): string {
  const d = dateOf(ns);
  const zone = -d.getTimezoneOffset();
  const sign = zone < 0 ? "−" : "+";
  const offset = `UTC${zone ? `${sign}${two(Math.floor(Math.abs(zone) / 60))}:${two(Math.abs(zone) % 60)}` : ""}`;
  const fraction = (BigInt(ns) % 1_000_000_000n).toString().padStart(9, "0").slice(0, 3);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${clock(ns)}.${fraction} ${offset}`;
}

/** The telling part of a long id: `r1:9f2c41ab…`. */
export function short(id: string, keep = 8): string {
  const colon = id.indexOf(":") + 1;
  return id.length <= colon + keep + 1 ? id : `${id.slice(0, colon + keep)}…`;
}
