import type { Costs, CostGroup, Total } from "./api";

const DAY = 86_400_000;

/** The last `n` UTC days, today last: `2026-11-22`. */
export function lastDays(n: number, now = Date.now()): string[] {
  return Array.from({ length: n }, (_, i) => new Date(now - (n - 1 - i) * DAY).toISOString().slice(0, 10));
}

/** One line of the table: a group over all days. */
export interface Line extends Total {
  name: string;
  /** Dollars of each day. */
  daily: number[];
}

const SUMS = ["exchanges", "cost_usd", "unknown", "estimated", "tokens_in", "tokens_out", "cached"] as const;

/** Sums by day and group as one line a group, dearest first. */
export function linesOf(costs: Costs, by: CostGroup, days: string[]): Line[] {
  const at = new Map(days.map((day, i) => [day, i]));
  const lines = new Map<string, Line>();
  for (const group of costs.groups) {
    const name = String(group[by]);
    let line = lines.get(name);
    if (!line) {
      line = { name, daily: days.map(() => 0), exchanges: 0, cost_usd: 0, unknown: 0, estimated: 0, tokens_in: 0, tokens_out: 0, cached: 0 };
      lines.set(name, line);
    }
    for (const sum of SUMS) line[sum] += group[sum];
    const day = at.get(String(group.day));
    if (day !== undefined) line.daily[day]! += group.cost_usd;
  }
  return [...lines.values()].sort((a, b) => b.cost_usd - a.cost_usd || b.exchanges - a.exchanges);
}

/** The few dearest lines, and the rest as one. `nameOf` and `other` say what each is called. */
export function fewest(lines: Line[], most: number, nameOf: (name: string) => string, other: (n: number) => string): { name: string; daily: number[] }[] {
  const paid = lines.filter((line) => line.cost_usd > 0);
  const own = paid.length > most ? paid.slice(0, most - 1) : paid;
  const rest = paid.slice(own.length);
  const shown = own.map(({ name, daily }) => ({ name: nameOf(name), daily }));
  if (!rest.length) return shown;
  return [...shown, { name: other(rest.length), daily: rest[0]!.daily.map((_, day) => rest.reduce((sum, line) => sum + line.daily[day]!, 0)) }];
}

/** A share as people read it: `0.3 %`, `42 %`; what is little is not shown as nothing, and what is not all is not 100 %. */
export function percent(part: number, whole: number): string {
  if (!whole || !part) return "0 %";
  const share = (100 * part) / whole;
  if (share < 0.1) return "< 0.1 %";
  if (share > 99 && share < 100) return `${(Math.floor(share * 10) / 10).toFixed(1)} %`;
  return `${share < 10 ? share.toFixed(1).replace(/\.0$/, "") : Math.round(share)} %`;
}

/** A condition of the trace list, quoted where it must be. */
export function clause(column: string, value: string): string {
  return /^[^\s"\\]+$/.test(value) ? `${column}=${value}` : `${column}="${value.replace(/(["\\])/g, "\\$1")}"`;
}
