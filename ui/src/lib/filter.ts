/** Clauses of a filter as text: added and removed whole. */

export function clauses(filter: string): string[] {
  return filter.split(/\s+/).filter(Boolean);
}

const columnOf = (clause: string) => clause.match(/^[\w.]+/)?.[0] ?? clause;

/** The filter with `clause` in it (replacing those on the same column), or without it where it was there. */
export function toggled(filter: string, clause: string): string {
  const all = clauses(filter);
  if (all.includes(clause)) return all.filter((c) => c !== clause).join(" ");
  return [...all.filter((c) => columnOf(c) !== columnOf(clause)), clause].join(" ");
}
