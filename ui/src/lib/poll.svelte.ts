import type { ApiError } from "./api";
import { session } from "./session.svelte";

/** What a question to the server gave last. It stays in sight until the next answer is there. */
export class Poll<T> {
  data = $state.raw<T | null>(null);
  error = $state.raw<ApiError | null>(null);
  busy = $state(false);
  private control = new AbortController();

  constructor(private readonly ask: (signal: AbortSignal) => Promise<T>) {}

  /** Ask now, and again every so many seconds while the page is visible. Returns what ends it: for an effect. */
  every(seconds: number): () => void {
    void this.load();
    const timer = setInterval(() => !document.hidden && !this.busy && void this.load(), seconds * 1000);
    return () => {
      clearInterval(timer);
      this.control.abort();
    };
  }

  /** Ask anew; an answer that is still awaited is not waited for any more. */
  async load(): Promise<void> {
    this.control.abort();
    const control = (this.control = new AbortController());
    this.busy = true;
    try {
      const data = await this.ask(control.signal);
      if (control.signal.aborted) return;
      this.data = data;
      this.error = null;
    } catch (e) {
      if (!control.signal.aborted) this.error = session.meet(e);
    } finally {
      if (this.control === control) this.busy = false;
    }
  }
}
