/** The management API of the model journey. Moments are ns: as text, or as numbers that are exact to the microsecond. */
import { request, send } from "./api";

export type Moment = string | number;

// -- datasets ------------------------------------------------------------------------------------

export interface Version {
  id: string;
  name: string;
  made_ns: Moment;
  splits: Record<string, number>;
  rejected: number;
  parents: string[];
  recipe: Record<string, unknown> & { step?: string };
  note: string;
  rows: number;
}

export interface DataRow {
  messages: { role: string; content: unknown }[];
  answer: string;
  label: string;
  lang: string;
  group: string;
  subject: string;
  source: { origin: "file" | "trace" | "feedback" | "synthetic"; ref: string; at_ns: Moment; app: string; release: string };
  tags: Record<string, string>;
}

export interface ShownRow {
  id: string;
  split: string;
  state: "ok" | "erased" | "damaged" | "missing";
  row: DataRow | null;
  detail: string;
}

export interface Rejected {
  row: string;
  stage: string;
  rule: string;
  value: number | null;
  threshold: number | null;
  survivor: string;
  detail: string;
  source: string;
  content: DataRow | null;
}

export interface Rule {
  stage: string;
  rule: string;
  rows: number;
}

interface Told {
  id: string;
  split: string;
  row: DataRow | null;
}

export interface Difference {
  before: Version;
  after: Version;
  counts: { added: Record<string, number>; removed: Record<string, number>; moved: number; relabelled: number | null };
  added: Told[];
  removed: Told[];
  moved: { row: string; before: string; after: string; content: DataRow | null }[];
  relabelled: { before_row: string; after_row: string; before: string; after: string; content: DataRow | null }[] | null;
}

// -- training ------------------------------------------------------------------------------------

export interface Progress {
  at_ns: Moment;
  phase: string;
  step?: number;
  steps?: number;
  loss?: number | null;
  seconds_per_step?: number | null;
  eta_seconds?: number | null;
  note?: string;
}

export interface Checked {
  file: string;
  at_ns: Moment;
  equivalent: boolean | null;
  rows: number;
  agreement: number | null;
  trained_accuracy: number | null;
  served_accuracy: number | null;
  threshold: number | null;
  code: string;
  says: string;
}

export interface Job {
  id: string;
  state: "waiting" | "running" | "done" | "failed" | "lost" | "stopped";
  job: {
    method: string;
    base: string;
    dataset: string;
    system: string;
    seed: number;
    lora: { r: number; alpha: number };
    schedule: { epochs: number; steps: number; batch: number; accumulate: number; learning_rate: number; max_length: number; checkpoint_every: number };
    outputs: string[];
    validation: string;
  };
  created_ns: Moment;
  attempt: number;
  predicted_bytes: number;
  now: Progress | null;
  progress: Progress[];
  next: number;
  result: {
    made: { name: string; role: string; sha256: string; bytes: number }[];
    steps: number;
    seconds: number;
    cpu_seconds: number;
    peak_bytes: number;
    loss: number[];
    validation_loss: number | null;
    rows: number;
    skipped: Record<string, string>;
    environment: Record<string, string>;
    metrics: Record<string, unknown>;
  } | null;
  checked: Checked[];
  reason: string;
  folder: string;
}

// -- evaluations ---------------------------------------------------------------------------------

export interface Estimate {
  value: number;
  low: number;
  high: number;
  n: number;
  method: string;
  confidence: number;
}

export interface Scored {
  row: string;
  exchange: string;
  answer: string;
  expected: string;
  label: string;
  scores: Record<string, number>;
  latency_ms: number;
  error: string;
  said: string;
}

export interface Report {
  suite: Suite;
  made_ns: Moment;
  seconds: number;
  estimates: Record<string, Estimate>;
  by_label: Record<string, { precision: number; recall: number; f1: number; support: number }>;
  items: Scored[];
  hash: string;
  cached: number;
}

export interface Suite {
  name: string;
  dataset: string;
  split: string;
  metrics: string[];
  params: Record<string, unknown>;
  limit: number;
}

export interface Evaluation {
  id: string;
  suite: Suite;
  app: string;
  release: string;
  release_name: string;
  made_ns: Moment;
  by: string;
  state: "running" | "done" | "failed" | "stopped";
  attempts: number;
  says: string;
  report: Report | null;
  progress: Record<string, unknown>;
}

export interface Compared {
  metric: string;
  difference: Estimate;
  p: number;
  p_adjusted: number;
  test: string;
  verdict: "better" | "worse" | "not_worse" | "no_difference" | "need_more";
  margin: number;
  more: number;
  n: number;
}

// -- releases ------------------------------------------------------------------------------------

export interface ReleaseRow {
  app: string;
  name: string;
  id: string;
  percent: number;
  aliases: string[];
  from: string;
  made_ns: Moment | null;
  parent: string;
  note: string;
  model: string;
  prompt: string;
  guard: string;
  reproducible: boolean;
  retired_ns: Moment | null;
  rollout: string;
}

export interface Parts {
  route: { name: string; provider: string; model: string; url: string; digests: Record<string, string>; options: Record<string, unknown> }[];
  prompt: { name: string; text: string; digest: string } | null;
  guard: { check: string; action: string; on: string[] }[];
  guard_name: string;
  params: Record<string, unknown>;
}

export interface Artifact {
  id: string;
  kind: string;
  files: { name: string; sha256: string; bytes: number }[];
  inputs: Record<string, string>;
  facts: Record<string, string>;
  made_ns: Moment;
  signed_by: string;
  bytes: number;
}

export interface Finding {
  rule: { kind: string; metric: string; suite: string; margin: number; ratio: number };
  verdict: "pass" | "fail" | "inconclusive";
  says: string;
  more: number;
}

export interface Tally {
  judged: number;
  total: number;
  requests: number;
  failed: number;
}

export interface Decision {
  at_ns: Moment;
  action: "hold" | "advance" | "promote" | "roll_back" | "give_up";
  says: string;
  evidence: { stable?: Tally; candidate?: Tally; difference?: number; interval?: [number, number]; harm?: number; failing?: number; needed?: number; step?: number; step_judged?: number; more?: number; by?: string; waits?: string };
}

export interface Look {
  at_ns: Moment;
  step: number;
  stable_judged: number;
  stable_mean: number;
  judged: number;
  mean: number;
  low: number;
  high: number;
  harm: number;
}

export interface Rollout {
  id: string;
  app: string;
  stable: string;
  candidate: string;
  stable_id: string;
  candidate_id: string;
  policy: { steps: number[]; metric: string; max_regression: number; min_answers: number; alpha: number; error_rate: number; patience_hours: number };
  state: "gated" | "running" | "paused" | "promoted" | "rolled_back" | "rejected" | "inconclusive" | "retired";
  step: number;
  began_ns: Moment;
  step_began_ns: Moment;
  ended_ns: Moment;
  findings: Finding[];
  waived: string;
  reason: string;
  by: string;
  percent: number;
}

export interface WholeRollout extends Omit<Rollout, "decisions"> {
  decisions: Decision[];
  looks: Look[];
}

export type Word = "promote" | "rollback" | "pause" | "resume";

// -- drift ---------------------------------------------------------------------------------------

export type Standing = "drifted" | "steady" | "insufficient";

export interface Signal {
  name: string;
  test: string;
  standing: Standing;
  effect: number;
  least_effect: number;
  p: number;
  q: number;
  n_reference: number;
  n_recent: number;
  says: string;
}

export interface Term {
  term: string;
  reference: number;
  recent: number;
  z: number;
}

export interface DriftReport {
  id: string;
  at_ns: Moment;
  windows: { from_ns: Moment; split_ns: Moment; until_ns: Moment };
  standing: Standing;
  signals: Signal[];
  more: Term[];
  less: Term[];
  examples: string[];
  seconds: number;
  says: string;
}

export interface DriftState {
  app: string;
  firing: boolean;
  standing: Standing;
  since_ns: Moment;
  checked_ns: Moment;
  policy: { reference_seconds: number; recent_seconds: number; every_seconds: number; level: number; sensitivity: string; calm: number; refresh: unknown } | null;
  says: string;
}

// -- refreshes -----------------------------------------------------------------------------------

export interface Step {
  name: string;
  state: "waiting" | "running" | "done" | "failed" | "asks";
  /** Absent in lists. */
  output?: Record<string, unknown>;
  began_ns: Moment;
  ended_ns: Moment;
  attempt: number;
  says: string;
}

export interface Refresh {
  id: string;
  app: string;
  cause: "drift" | "schedule" | "person" | "demo";
  by: string;
  plan?: { policy: Record<string, unknown> & { suite: string; ask: string[] }; metric: string; parent: string; parent_name: string; base: string; since_ns: Moment; until_ns: Moment; report: string };
  began_ns: Moment;
  steps: Step[];
  state: "running" | "asks" | "promoted" | "rejected" | "rolled_back" | "inconclusive" | "stopped" | "failed";
  ended_ns: Moment;
  attempt: number;
  words: { action: string; step: string; by: string; at_ns: Moment; why: string }[];
  says: string;
  release: string;
  release_name: string;
  at: string;
  progress: Record<string, unknown>;
}

export type Turn = "approve" | "reject" | "waive" | "stop" | "resume";

// -- calls ---------------------------------------------------------------------------------------

const part = encodeURIComponent;
/** A question that is too long for an address. */
const post = <T>(path: string, body: unknown, signal?: AbortSignal) =>
  request<T>(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });
const dataset = (name: string, version: string) => `/api/datasets/${part(name)}/${part(version)}`;

export const model = {
  datasets: (signal?: AbortSignal) => request<{ versions: Version[] }>("/api/datasets", { signal }).then((r) => r.versions),
  versions: (name: string, signal?: AbortSignal) => request<{ versions: Version[]; next: number | null }>(`/api/datasets/${part(name)}?limit=200`, { signal }),
  version: (name: string, id: string, signal?: AbortSignal) => request<Version>(dataset(name, id), { signal }),
  rows: (name: string, id: string, split: string, after: string, limit: number, signal?: AbortSignal) =>
    request<{ rows: ShownRow[]; next: string | null }>(`${dataset(name, id)}/rows?${new URLSearchParams({ split, after, limit: String(limit) })}`, { signal }),
  rejections: (name: string, id: string, offset: number, limit: number, signal?: AbortSignal) =>
    request<{ rejections: Rejected[]; next: number | null; total: number }>(`${dataset(name, id)}/rejections?content=true&offset=${offset}&limit=${limit}`, { signal }),
  rules: (name: string, id: string, signal?: AbortSignal) => request<Rule[]>(`${dataset(name, id)}/rejections/rules`, { signal }),
  diff: (name: string, id: string, before: string, signal?: AbortSignal) => request<Difference>(`${dataset(name, id)}/diff?before=${part(before)}`, { signal }),
  readRows: (ids: string[], signal?: AbortSignal) =>
    post<{ rows: ShownRow[] }>("/api/rows/read", { ids }, signal).then((r) => r.rows),

  jobs: (signal?: AbortSignal) => request<Job[]>("/api/jobs/training", { signal }),
  job: (id: string, after: number, signal?: AbortSignal) => request<Job>(`/api/jobs/training/${part(id)}?after=${after}`, { signal }),
  stopJob: (id: string) => send<Job>("POST", `/api/jobs/training/${part(id)}/stop`),
  resumeJob: (id: string) => send<Job>("POST", `/api/jobs/training/${part(id)}/resume`),

  evaluations: (signal?: AbortSignal) => request<{ evaluations: Evaluation[]; total: number }>("/api/evaluations?limit=200", { signal }),
  evaluation: (id: string, items: boolean, signal?: AbortSignal) => request<Evaluation>(`/api/evaluations/${part(id)}?items=${items}`, { signal }),
  compare: (first: string, second: string, margins: Record<string, number>, signal?: AbortSignal) =>
    post<{ comparisons: Compared[] }>("/api/evaluations/compare", { first, second, margins }, signal).then((r) => r.comparisons),
  stopEvaluation: (id: string) => send<Evaluation>("POST", `/api/evaluations/${part(id)}/stop`),
  resumeEvaluation: (id: string) => send<Evaluation>("POST", `/api/evaluations/${part(id)}/resume`),

  releases: (app: string, signal?: AbortSignal) => request<ReleaseRow[]>(`/api/releases${app ? `?app=${part(app)}` : ""}`, { signal }),
  release: (app: string, name: string, signal?: AbortSignal) => request<ReleaseRow & { parts: Parts }>(`/api/releases/one?app=${part(app)}&name=${part(name)}`, { signal }),
  verify: (app: string, name: string) => send<{ ok: boolean; artifacts: Record<string, string> }>("POST", "/api/releases/verify", { app, name }),
  artifacts: (signal?: AbortSignal) => request<{ artifacts: Artifact[] }>("/api/artifacts", { signal }).then((r) => r.artifacts),
  differences: (app: string, first: string, second: string, signal?: AbortSignal) =>
    request<{ part: string; first: string; second: string }[]>(`/api/releases/compare?${new URLSearchParams({ app, first, second })}`, { signal }),
  rollouts: (app: string, signal?: AbortSignal) => request<Rollout[]>(`/api/rollouts${app ? `?app=${part(app)}` : ""}`, { signal }),
  rollout: (id: string, signal?: AbortSignal) => request<WholeRollout>(`/api/rollouts/${part(id)}`, { signal }),
  decide: (id: string, action: Word, why: string) => send<WholeRollout>("POST", `/api/rollouts/${part(id)}`, { action, why }),

  drifts: (signal?: AbortSignal) => request<DriftState[]>("/api/drift", { signal }),
  drift: (app: string, signal?: AbortSignal) => request<DriftState & { reports: DriftReport[] }>(`/api/drift/${part(app)}`, { signal }),
  refreshes: (signal?: AbortSignal) => request<{ refreshes: Refresh[]; total: number }>("/api/refreshes", { signal }),
  refresh: (id: string, signal?: AbortSignal) => request<Refresh>(`/api/refreshes/${part(id)}`, { signal }),
  say: (id: string, action: Turn, why: string) => send<Refresh>("POST", `/api/refreshes/${part(id)}/${action}`, { why }),

  lookForDrift: (app: string) => send<{ id: string }>("POST", `/api/drift/${part(app)}/run`, {}),
};
