import type { Component } from "svelte";
import type { Words } from "./words.en";

/** What a page belongs to: one of the two journeys, or what runs across both. */
export type Group = "prompts" | "models" | "govern";
export const GROUPS: Group[] = ["prompts", "models", "govern"];

/** A page of the console. Its code is loaded when it is first asked for. */
export interface Route {
  path: string;
  group: Group;
  /** Pressed after `g`. */
  key: string;
  nav: (words: Words) => string;
  load: () => Promise<{ default: Component }>;
  /** The page of one of its things, at `<path>/<id>`. */
  item?: () => Promise<{ default: Component<{ id: string }> }>;
}

export const ROUTES: Route[] = [
  { path: "/traces", group: "prompts", key: "t", nav: (w) => w.traces, load: () => import("../pages/Traces.svelte"), item: () => import("../pages/Trace.svelte") },
  { path: "/playground", group: "prompts", key: "p", nav: (w) => w.playground, load: () => import("../pages/Playground.svelte") },
  { path: "/endpoints", group: "prompts", key: "e", nav: (w) => w.nav.endpoints, load: () => import("../pages/Endpoints.svelte") },
  { path: "/batches", group: "prompts", key: "a", nav: (w) => w.nav.batches, load: () => import("../pages/Batches.svelte") },
  { path: "/datasets", group: "models", key: "d", nav: (w) => w.nav.datasets, load: () => import("../pages/Datasets.svelte"), item: () => import("../pages/Dataset.svelte") },
  { path: "/training", group: "models", key: "n", nav: (w) => w.nav.training, load: () => import("../pages/Trainings.svelte"), item: () => import("../pages/Training.svelte") },
  { path: "/evaluations", group: "models", key: "v", nav: (w) => w.nav.evaluations, load: () => import("../pages/Evaluations.svelte"), item: () => import("../pages/Evaluation.svelte") },
  { path: "/releases", group: "models", key: "r", nav: (w) => w.nav.releases, load: () => import("../pages/Releases.svelte"), item: () => import("../pages/AppReleases.svelte") },
  { path: "/drift", group: "models", key: "f", nav: (w) => w.nav.drift, load: () => import("../pages/Drifts.svelte"), item: () => import("../pages/Drift.svelte") },
  { path: "/refreshes", group: "models", key: "h", nav: (w) => w.nav.refreshes, load: () => import("../pages/Refreshes.svelte"), item: () => import("../pages/Refresh.svelte") },
  { path: "/cost", group: "govern", key: "c", nav: (w) => w.nav.cost, load: () => import("../pages/Cost.svelte") },
  { path: "/budgets", group: "govern", key: "b", nav: (w) => w.nav.budgets, load: () => import("../pages/Budgets.svelte") },
  { path: "/limits", group: "govern", key: "l", nav: (w) => w.nav.limits, load: () => import("../pages/Limits.svelte") },
  { path: "/keys", group: "govern", key: "k", nav: (w) => w.access.nav, load: () => import("../pages/Keys.svelte") },
  { path: "/orgs", group: "govern", key: "o", nav: (w) => w.orgs.nav, load: () => import("../pages/Orgs.svelte") },
];

/** The page that an address belongs to: its own, or that of the list it is an item of. */
export function routeOf(path: string): Route | undefined {
  const first = `/${path.split("/")[1] || "traces"}`;
  return ROUTES.find((route) => route.path === first);
}
