// A body whose every byte depends on its place, and the digest of what came. A block of prime length is repeated, so that a piece that
// is lost, doubled or moved changes the digest.
import crypto from 'node:crypto';

const PRIME = 65_521;
const block = Buffer.alloc(PRIME * 2 + 65_536);
for (let i = 0; i < block.length; i += 1) block[i] = ((i % PRIME) * 167 + (i % PRIME >> 8) * 13) & 0xff;

export function chunk(offset, length) {
  const start = offset % PRIME;
  return block.subarray(start, start + Math.min(length, 65_536));
}

export class Digest {
  #hash = crypto.createHash('sha256');
  bytes = 0;

  feed(data) {
    this.#hash.update(data);
    this.bytes += data.length;
  }

  report() {
    return { bytes: this.bytes, sha256: this.#hash.copy().digest('hex') };
  }
}

// What a body of `bytes` bytes must look like at the other end.
export function expected(bytes) {
  const digest = new Digest();
  for (let sent = 0; sent < bytes; ) {
    const data = chunk(sent, bytes - sent);
    digest.feed(data);
    sent += data.length;
  }
  return digest.report();
}
