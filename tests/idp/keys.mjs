// Signing keys of the test issuer: made at start, changed at run time by `rotate`.
import { generateKeyPairSync, randomUUID } from 'node:crypto';

export const ALGORITHMS = ['ES256', 'RS256', 'EdDSA'];

const make = {
  ES256: () => generateKeyPairSync('ec', { namedCurve: 'P-256' }),
  RS256: () => generateKeyPairSync('rsa', { modulusLength: 2048 }),
  EdDSA: () => generateKeyPairSync('ed25519'),
};

const fresh = () =>
  ALGORITHMS.map((alg) => ({
    ...make[alg]().privateKey.export({ format: 'jwk' }),
    use: 'sig',
    alg,
    kid: `${alg.toLowerCase()}-${randomUUID().slice(0, 8)}`,
  }));

let keys = fresh();

/** The private key set, newest first: oidc-provider signs with the first key that fits. */
export const jwks = () => ({ keys: structuredClone(keys) });

/** What the issuer publishes: the same without what signs. */
export const publicJwks = () => ({
  keys: keys.map(({ d, p, q, dp, dq, qi, ...shown }) => shown),
});

/** `hard` drops the old keys from the published set; `overlap` keeps them behind the new ones. */
export function rotate(mode) {
  keys = mode === 'hard' ? fresh() : [...fresh(), ...keys];
  return keys.map((key) => key.kid);
}
