import type { Key } from "./api";

/** A key's fields as a form holds them. */
export interface Draft {
  name: string;
  org: string;
  team: string;
  user: string;
  apps: string[];
  endpoints: string;
  guard: string;
  budget: number | null;
  rpm: number | null;
  /** Local day, `2027-01-31`; empty = never. */
  expires: string;
  tags: string;
  metadata: string;
}

export const EMPTY: Draft = {
  name: "", org: "", team: "", user: "", apps: [], endpoints: "", guard: "", budget: null, rpm: null, expires: "", tags: "", metadata: "",
};

const lines = (pairs: Record<string, string>) => Object.entries(pairs).map(([n, v]) => `${n}=${v}`).join("\n");

/** The local day in which a time lies. */
export function dayOf(ns: string): string {
  const d = new Date(Number(BigInt(ns) / 1_000_000n));
  return `${d.getFullYear()}-${String(d.getMonth() + 1).padStart(2, "0")}-${String(d.getDate()).padStart(2, "0")}`;
}

export function draftOf(key: Key): Draft {
  const { name, org, team, user, apps, guard, rpm } = key;
  return {
    name, org, team, user, apps: [...apps], guard, rpm, endpoints: key.endpoints.join("\n"), budget: key.budget_usd,
    expires: key.expires_ns ? dayOf(key.expires_ns) : "", tags: lines(key.tags), metadata: lines(key.metadata),
  };
}

/** A line that should be `name=value` and is not. */
export class BadPair extends Error {}

function pairs(text: string): Record<string, string> {
  const found: Record<string, string> = {};
  for (const line of text.split("\n").map((l) => l.trim()).filter(Boolean)) {
    const at = line.indexOf("=");
    if (at < 1) throw new BadPair(line);
    found[line.slice(0, at).trim()] = line.slice(at + 1).trim();
  }
  return found;
}

/** What the server is asked for. Raises `BadPair`. */
function bodyOf(draft: Draft): Record<string, unknown> {
  const { name, org, team, user, apps, guard } = draft;
  return {
    name: name.trim(), org, team, user, apps, guard,
    endpoints: draft.endpoints.split(/\s+/).filter(Boolean),
    budget_usd: draft.budget ?? null,
    rpm: draft.rpm ?? null,
    expires_at: draft.expires ? new Date(`${draft.expires}T23:59:59.999`).toISOString() : null,
    tags: pairs(draft.tags),
    metadata: pairs(draft.metadata),
  };
}

/** The fields in which `draft` differs from `before`; whose it is goes as a whole. Raises `BadPair`. */
export function changes(before: Draft, draft: Draft): Record<string, unknown> {
  const old = bodyOf(before);
  const fresh = bodyOf(draft);
  const changed = Object.entries(fresh).filter(([field, value]) => JSON.stringify(value) !== JSON.stringify(old[field]));
  const made = Object.fromEntries(changed);
  if ("org" in made || "team" in made || "user" in made) Object.assign(made, { org: fresh.org, team: fresh.team, user: fresh.user });
  return made;
}
