// The clients that the issuer knows: one public for people, and confidential ones for each way in which a client can prove who it is.
import fs from 'node:fs';

const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code';
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';

export const METHODS = [
  'none',
  'client_secret_basic',
  'client_secret_post',
  'private_key_jwt',
  'tls_client_auth',
  'self_signed_tls_client_auth',
];

/** Public keys of clients by their ids, as the harness made them. */
const KEYS = process.env.CLIENT_KEYS ? JSON.parse(fs.readFileSync(process.env.CLIENT_KEYS)) : {};

/** What people log in with; `bound` gets tokens that only the certificate it showed may use. */
const person = (id, bound) => ({
  client_id: id,
  token_endpoint_auth_method: 'none',
  application_type: 'native',
  grant_types: ['authorization_code', 'refresh_token', DEVICE],
  response_types: ['code'],
  redirect_uris: ['http://127.0.0.1/'],
  tls_client_certificate_bound_access_tokens: bound,
});

const machine = (id, method, more) => ({
  client_id: id,
  token_endpoint_auth_method: method,
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
  ...more,
});

/** Left out where the harness made no key for it: the library demands one. */
const withKeys = (id, method, more) => (KEYS[id] ? [machine(id, method, { jwks: KEYS[id], ...more })] : []);

/** What a page has its reader set up at a vendor, but for what is there already. Programs have one secret, or one key. */
const ofVendor = ({ people, programs }, scope) => [
  ...(people === 'postern-cli' ? [] : [person(people, false)]),
  ...Object.entries(programs).flatMap(([id, method]) =>
    method === 'private_key_jwt'
      ? [machine(id, method, { jwks: KEYS['nightly-jwt'], scope })]
      : [machine(id, method, { client_secret: 'nightly-batch-secret', scope })]),
];

/** `scope` is what machines may ask for themselves. Those named relay may introspect every token. */
export const clients = (scope, vendor) => [
  ...(vendor ? ofVendor(vendor, scope) : []),
  person('postern-cli', false),
  person('postern-cli-mtls', true),
  machine('nightly-batch', 'client_secret_basic', { client_secret: 'nightly-batch-secret', scope }),
  machine('nightly-post', 'client_secret_post', { client_secret: 'nightly-post-secret', scope }),
  ...withKeys('nightly-jwt', 'private_key_jwt', { scope }),
  machine('nightly-tls', 'tls_client_auth', {
    scope,
    tls_client_auth_subject_dn: 'CN=nightly-tls',
    tls_client_certificate_bound_access_tokens: true,
  }),
  machine('relay', 'client_secret_basic', { client_secret: 'relay-secret' }),
  // What RFC 6749 2.3.1 has to be obeyed for.
  machine('https://relay.example.com/rs', 'client_secret_basic', { client_secret: 'se+cr et:%/&=~' }),
  machine('relay-post', 'client_secret_post', { client_secret: 'se+cr et:%/&=~' }),
  ...withKeys('relay-jwt', 'private_key_jwt', {}),
  machine('relay-tls', 'tls_client_auth', { tls_client_auth_subject_dn: 'CN=relay-tls' }),
  ...withKeys('relay-self-signed', 'self_signed_tls_client_auth', {}),
  machine('relay-exchange', 'client_secret_basic', {
    client_secret: 'relay-exchange-secret',
    grant_types: ['client_credentials', EXCHANGE],
    scope,
  }),
];
