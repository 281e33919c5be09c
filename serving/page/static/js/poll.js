// Asks again and again, but not while nobody looks, and more rarely while there is no answer.

export class Poll {
  /** @param ask asynchronous; its errors go to `failed` and slow it down. @param everyMs time between two answers. */
  constructor(ask, everyMs, failed = () => {}) {
    Object.assign(this, { ask, everyMs, failed, timer: 0, failures: 0, busy: false });
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
    addEventListener("rekeyed", () => this.now());
    this.now();
  }

  async now() {
    clearTimeout(this.timer);
    if (this.busy) return;
    this.busy = true;
    try {
      await this.ask();
      this.failures = 0;
    } catch (error) {
      this.failures += 1;
      this.failed(error);
    }
    this.busy = false;
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.now(), Math.min(this.everyMs * 2 ** Math.min(this.failures, 3), 15_000));
  }
}
