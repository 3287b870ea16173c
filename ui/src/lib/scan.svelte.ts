import type { ApiError } from "./api";
import { session } from "./session.svelte";

/** Goes through pages of a list until enough of it is what is looked for: what the server keeps sealed it cannot search. */
export class Scan<T, C> {
  found = $state.raw<T[]>([]);
  /** How many were looked at. */
  looked = $state(0);
  busy = $state(false);
  error = $state.raw<ApiError | null>(null);
  private next = $state.raw<C | null>(null);
  private control = new AbortController();

  constructor(
    first: C,
    private readonly page: (cursor: C, signal: AbortSignal) => Promise<{ items: T[]; next: C | null }>,
    private readonly wanted: (item: T) => boolean = () => true,
  ) {
    this.next = first;
  }

  /** Whether there is more to look at. */
  get more(): boolean {
    return this.next !== null;
  }

  /** Look on until `enough` more were found, or the end is there. */
  async go(enough = 50): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    this.error = null;
    const until = this.found.length + enough;
    try {
      while (this.next !== null && this.found.length < until) {
        const { items, next } = await this.page(this.next, this.control.signal);
        if (this.control.signal.aborted) return;
        this.looked += items.length;
        this.found = [...this.found, ...items.filter(this.wanted)];
        this.next = next;
      }
    } catch (e) {
      if (!this.control.signal.aborted) this.error = session.meet(e);
    } finally {
      this.busy = false;
    }
  }

  stop(): void {
    this.control.abort();
  }
}
