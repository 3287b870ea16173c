import type { Component } from "svelte";
import type { Words } from "./words.en";

/** A page of the console. Its code is loaded when it is first asked for. */
export interface Route {
  path: string;
  /** Pressed after `g`. */
  key: string;
  nav: (words: Words) => string;
  /** What the list of shortcuts says. */
  go: (words: Words) => string;
  load: () => Promise<{ default: Component }>;
}

export const ROUTES: Route[] = [
  { path: "/traces", key: "t", nav: (w) => w.traces, go: (w) => w.shortcuts.traces, load: () => import("../pages/Traces.svelte") },
  { path: "/playground", key: "p", nav: (w) => w.playground, go: (w) => w.shortcuts.play, load: () => import("../pages/Playground.svelte") },
  { path: "/cost", key: "c", nav: (w) => w.nav.cost, go: (w) => w.shortcuts.costPage, load: () => import("../pages/Cost.svelte") },
  { path: "/budgets", key: "b", nav: (w) => w.nav.budgets, go: (w) => w.shortcuts.budgetsPage, load: () => import("../pages/Budgets.svelte") },
  { path: "/limits", key: "l", nav: (w) => w.nav.limits, go: (w) => w.shortcuts.limitsPage, load: () => import("../pages/Limits.svelte") },
  { path: "/endpoints", key: "e", nav: (w) => w.nav.endpoints, go: (w) => w.shortcuts.endpointsPage, load: () => import("../pages/Endpoints.svelte") },
  { path: "/batches", key: "a", nav: (w) => w.nav.batches, go: (w) => w.shortcuts.batchesPage, load: () => import("../pages/Batches.svelte") },
  { path: "/keys", key: "k", nav: (w) => w.access.nav, go: (w) => w.shortcuts.keysPage, load: () => import("../pages/Keys.svelte") },
  { path: "/orgs", key: "o", nav: (w) => w.orgs.nav, go: (w) => w.shortcuts.orgsPage, load: () => import("../pages/Orgs.svelte") },
];

/** The page that an address belongs to: its own, or that of the list it is an item of. */
export function routeOf(path: string): Route | undefined {
  const first = `/${path.split("/")[1] || "traces"}`;
  return ROUTES.find((route) => route.path === first);
}
