// One clock for all programs of a test, in milliseconds: CLOCK_MONOTONIC, which Python's time.monotonic() and Rust read too.
export const now = () => Number(process.hrtime.bigint()) / 1e6;

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// Waits for a condition; the deadline is an error that says what was waited for.
export async function until(what, probe, limit = 10_000) {
  const end = now() + limit;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (now() > end) throw new Error(`waited ${limit} ms in vain: ${what}`);
    await sleep(5);
  }
}
