/** Scopes of budgets and limits: `tenant`, or a kind and a name (`team:search`, `tag:env=prod`). */
export const KINDS = ["tenant", "org", "team", "user", "key", "app", "tag"] as const;
export type ScopeKind = (typeof KINDS)[number];

export function partsOf(scope: string): { kind: string; name: string } {
  const at = scope.indexOf(":");
  return at < 0 ? { kind: scope, name: "" } : { kind: scope.slice(0, at), name: scope.slice(at + 1) };
}
