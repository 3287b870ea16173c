/**
 * A time axis on which microseconds and seconds can both be seen.
 *
 * The axis is cut wherever something begins or ends; each piece is drawn as wide as the logarithm of its
 * length. The order of events, what contains what, and what is longer all stay true; only proportions
 * do not, which is why every bar also carries its number and the reader can switch to the linear axis.
 */

export type Axis = (ns: number) => number;

export interface Tick {
  at: number;
  ns: number;
}

/** The identity on [0, end], scaled to [0, 1]. */
export function linear(end: number): Axis {
  return (ns) => Math.min(1, Math.max(0, ns / Math.max(end, 1)));
}

/** The compressed axis through `marks` (begins and ends of what is shown, ns). */
export function compressed(marks: number[], end: number): Axis {
  const cuts = [...new Set([0, ...marks.filter((m) => m > 0 && m < end), end])].sort((a, b) => a - b);
  const widths = cuts.slice(1).map((cut, i) => Math.log10(1 + (cut - cuts[i]!) / 1000) + 0.05);
  const total = widths.reduce((sum, w) => sum + w, 0) || 1;
  const starts = [0];
  for (const w of widths) starts.push(starts.at(-1)! + w / total);
  return (ns) => {
    if (ns <= 0) return 0;
    if (ns >= end) return 1;
    const i = cuts.findLastIndex((cut) => cut <= ns);
    const a = cuts[i]!;
    const b = cuts[i + 1]!;
    return starts[i]! + ((ns - a) / (b - a)) * (starts[i + 1]! - starts[i]!);
  };
}

/** Round times whose marks stand at least `gap` (share of the width) apart. */
export function ticks(axis: Axis, end: number, gap: number): Tick[] {
  const found: Tick[] = [{ at: 0, ns: 0 }];
  const consider = (ns: number) => {
    const at = axis(ns);
    if (ns < end && at - found.at(-1)!.at >= gap && 1 - at >= gap) found.push({ at, ns });
  };
  for (let decade = 1e3; decade < end; decade *= 10) for (const k of [1, 2, 5]) consider(k * decade);
  found.push({ at: 1, ns: end });
  return found;
}
