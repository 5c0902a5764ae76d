// Token exchange (RFC 8693) for confidential clients: an access token of this issuer becomes one for another audience, for the same
// person and at most the same scope and time. Only impersonation with `act`; no actor tokens, no other token types.
import { createLocalJWKSet, decodeProtectedHeader, jwtVerify } from 'jose';
import { errors } from 'oidc-provider';
import { publicJwks } from './keys.mjs';

export const GRANT = 'urn:ietf:params:oauth:grant-type:token-exchange';
export const PARAMETERS = ['subject_token', 'subject_token_type', 'requested_token_type', 'resource', 'audience', 'scope'];

const ACCESS = 'urn:ietf:params:oauth:token-type:access_token';
const JWT = 'urn:ietf:params:oauth:token-type:jwt';

const refuse = (description) => new errors.InvalidRequest(description);

function isJwt(token) {
  try {
    return Boolean(decodeProtectedHeader(token).alg);
  } catch {
    return false;
  }
}

/** What a subject token proves, or invalid_request (RFC 8693 2.2.2). */
async function subject(ctx, token) {
  const { provider } = ctx.oidc;
  if (!isJwt(token)) {
    const found = await provider.AccessToken.find(token);
    if (!found?.isValid) throw refuse('the subject token is not active');
    return { sub: found.accountId, scope: found.scope ?? '', exp: found.exp };
  }
  try {
    const keys = createLocalJWKSet(publicJwks());
    const { payload } = await jwtVerify(token, keys, { issuer: provider.issuer, typ: 'at+jwt' });
    return { sub: payload.sub, scope: payload.scope ?? '', exp: payload.exp };
  } catch (cause) {
    throw refuse(`the subject token is not good: ${cause.message}`);
  }
}

const many = (value) => [value ?? []].flat();

/** `resourceServer` knows the resources, and throws invalid_target for others; `isPerson` knows people: machines act for nobody. */
export async function exchange(ctx, resourceServer, isPerson) {
  const { params, client, provider } = ctx.oidc;
  if (!params.subject_token) throw refuse('subject_token is missing');
  if (params.subject_token_type !== ACCESS) throw refuse(`only ${ACCESS} can be exchanged`);
  if (![undefined, ACCESS, JWT].includes(params.requested_token_type)) throw refuse('no such token can be had');
  const targets = [...many(params.resource), ...many(params.audience)];
  if (targets.length !== 1) throw new errors.InvalidTarget('exactly one resource or audience');
  const server = resourceServer(targets[0]);
  const { sub, scope, exp } = await subject(ctx, params.subject_token);
  const held = scope.split(' ').filter(Boolean);
  const asked = params.scope?.split(' ') ?? held;
  if (asked.some((one) => !held.includes(one))) throw new errors.InvalidScope('more than the subject token has', params.scope);

  if (!isPerson(sub)) throw refuse('the subject token names nobody');

  const left = exp - Math.floor(Date.now() / 1000);
  const token = new provider.AccessToken({
    accountId: sub,
    client,
    expiresIn: Math.min(left, server.accessTokenTTL),
    gty: 'token_exchange',
    scope: asked.filter((one) => server.scope.split(' ').includes(one)).join(' ') || undefined,
  });
  token.resourceServer = new provider.ResourceServer(targets[0], server);
  ctx.oidc.entity('AccessToken', token);
  ctx.body = {
    access_token: await token.save(),
    issued_token_type: ACCESS,
    token_type: token.tokenType,
    expires_in: token.expiration,
    scope: token.scope,
  };
}
