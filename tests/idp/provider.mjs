// The OpenID provider itself: people, clients, resources and what its tokens say. Built anew after each key rotation, over the
// same store.
import { randomBytes } from 'node:crypto';
import Provider, { errors } from 'oidc-provider';
import { clients, METHODS } from './clients.mjs';
import { exchange, GRANT as EXCHANGE, PARAMETERS as EXCHANGED } from './exchange.mjs';
import { jwks } from './keys.mjs';
import * as mtls from './mtls.mjs';
import { Store } from './store.mjs';
import { customizer } from './vendors.mjs';

const RESOURCE = (process.env.RESOURCE ?? 'https://relay.example.com').replace(/\/$/, '');
const REFRESH_TTL = Number(process.env.REFRESH_TTL ?? 86400);
const SCOPES = 'invoices:read invoices:write';
// Kept over rotations of the signing keys, so that a nonce given before one is good after it.
const NONCE_SECRET = randomBytes(32);

/**
 * What the tests change while the issuer runs: the life of access tokens, how many pending device answers say slow_down instead,
 * the device grant's polling interval (0: the answer names none, which means 5 s), whether DPoP proofs need a nonce (1: yes), whether
 * access tokens for the main resource are opaque (1: yes), and whether tokens can be bound to keys (0: no).
 */
export const live = { accessTtl: Number(process.env.AT_TTL ?? 300), slowDown: 0, interval: 1, dpopNonce: 0, opaque: 0, dpop: 1 };

/** Calls of the token endpoint by grant type, successful or not. */
export const tokenCalls = {};

const PEOPLE = {
  ada: { email: 'ada@example.com', email_verified: true, groups: ['finance'], department: 'finance' },
  bob: { email: 'bob@example.com', email_verified: true, groups: [] },
};
export const isPerson = (name) => Object.hasOwn(PEOPLE, name);

const RESOURCES = {
  [RESOURCE]: { audience: RESOURCE, alg: 'ES256' },
  [`${RESOURCE}/rs256`]: { audience: RESOURCE, alg: 'RS256' },
  [`${RESOURCE}/eddsa`]: { audience: RESOURCE, alg: 'EdDSA' },
  [`${RESOURCE}/opaque`]: { audience: RESOURCE, format: 'opaque' },
  'https://other.example.com': { audience: 'https://other.example.com', alg: 'ES256' },
  'https://opaque.example.com': { audience: 'https://opaque.example.com', format: 'opaque' },
};

function resourceServer(indicator, scopes, wanted) {
  const known = RESOURCES[indicator.replace(/\/$/, '')];
  if (!known) throw new errors.InvalidTarget();
  const isOpaque = known.format === 'opaque' || (known === RESOURCES[RESOURCE] && (live.opaque > 0 || !wanted));
  return {
    scope: scopes,
    audience: known.audience,
    accessTokenTTL: live.accessTtl,
    accessTokenFormat: isOpaque ? 'opaque' : 'jwt',
    ...(!isOpaque && known.alg ? { jwt: { sign: { alg: known.alg } } } : {}),
  };
}

/** RFC 8252 7.3 asks for any port; the client also chooses a random path, which the library does not know. */
function loopbackRedirect(client, uri) {
  const url = URL.canParse(uri) ? new URL(uri) : undefined;
  const loopback = url?.protocol === 'http:' && ['127.0.0.1', '[::1]'].includes(url.hostname) && !url.hash;
  return client.applicationType === 'native' && loopback;
}

/** Access tokens say when and how the person logged in: the library knows it from what the token is exchanged for. One that was
 * exchanged says by whom (RFC 8693 4.1). */
function loginFacts(ctx) {
  if (ctx.oidc.params?.grant_type === EXCHANGE) return { act: { sub: ctx.oidc.client.clientId } };
  const { AuthorizationCode, DeviceCode, RefreshToken } = ctx.oidc.entities;
  const source = AuthorizationCode ?? DeviceCode ?? RefreshToken;
  return { ...(source?.authTime && { auth_time: source.authTime }), ...(source?.acr && { acr: source.acr }) };
}

/** `mtlsOrigin` is where the server asks for a client certificate (RFC 8705 5); it may be absent. So may `vendor`, whose place it takes. */
export function build(issuer, mtlsOrigin, vendor) {
  const scopes = [SCOPES, ...(vendor?.scopes ?? [])].join(' ');
  const wanted = (ctx) => !vendor?.opaque && (!vendor?.wants || ctx.oidc.body?.[vendor.wants] === RESOURCE);
  const provider = new Provider(issuer, {
    adapter: Store,
    clients: clients(scopes, vendor),
    ...(vendor?.shape && { formats: { customizers: { jwt: customizer(vendor, issuer) } } }),
    jwks: jwks(),
    cookies: { keys: ['these cookies never leave loopback'] },
    scopes: ['openid', 'offline_access', 'profile', 'email', ...scopes.split(' ')],
    claims: { openid: ['sub'], profile: ['groups'], email: ['email', 'email_verified'] },
    acrValues: ['pwd', 'mfa'],
    clientAuthMethods: METHODS,
    discovery: mtlsOrigin ? { mtls_endpoint_aliases: mtls.aliases(mtlsOrigin) } : {},
    pkce: { required: () => true },
    issueRefreshToken: async (ctx, client) => client.grantTypeAllowed('refresh_token'),
    expiresWithSession: () => false,
    rotateRefreshToken: true,
    interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
    ttl: {
      AccessToken: () => live.accessTtl,
      ClientCredentials: () => live.accessTtl,
      DeviceCode: 600,
      Grant: REFRESH_TTL,
      IdToken: 300,
      Interaction: 600,
      RefreshToken: REFRESH_TTL,
      Session: REFRESH_TTL,
    },
    findAccount: async (ctx, id) =>
      isPerson(id) ? { accountId: id, claims: async () => ({ sub: id, ...PEOPLE[id] }) } : undefined,
    extraTokenClaims: async (ctx, token) => ({ ...PEOPLE[token.accountId], ...loginFacts(ctx) }),
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      deviceFlow: {
        enabled: true,
        charset: 'base-20',
        mask: '****-****',
        userCodeInputSource: async (ctx, form) => { ctx.body = page(form); },
        userCodeConfirmSource: async (ctx, form) => { ctx.body = page(form); },
        successSource: async (ctx) => { ctx.body = page('approved'); },
      },
      dPoP: { enabled: vendor ? vendor.dpop === true : live.dpop > 0, nonceSecret: NONCE_SECRET, requireNonce: () => live.dpopNonce > 0 },
      introspection: { enabled: true, allowedPolicy: async (ctx, client) => /^((https:..)?relay|postern$)/.test(client.clientId) },
      mTLS: {
        enabled: true,
        certificateBoundAccessTokens: true,
        selfSignedTlsClientAuth: true,
        tlsClientAuth: true,
        getCertificate: mtls.certificate,
        certificateAuthorized: mtls.isAuthorized,
        certificateSubjectMatches: mtls.subjectMatches,
      },
      revocation: { enabled: true, allowedPolicy: async (ctx, client, token) => token.clientId === client.clientId },
      resourceIndicators: {
        enabled: true,
        defaultResource: async (ctx, client, oneOf) => (Array.isArray(oneOf) ? oneOf[0] : RESOURCE),
        useGrantedResource: async () => true,
        getResourceServerInfo: async (ctx, indicator) => resourceServer(indicator, scopes, wanted(ctx)),
      },
      rpInitiatedLogout: { enabled: false },
    },
    renderError: async (ctx, out) => { ctx.type = 'json'; ctx.body = out; },
  });
  provider.registerGrantType(EXCHANGE, (ctx) => exchange(ctx, (indicator) => resourceServer(indicator, scopes, true), isPerson), EXCHANGED, ['resource', 'audience']);
  const { redirectUriAllowed } = provider.Client.prototype;
  provider.Client.prototype.redirectUriAllowed = function allowed(uri) {
    return loopbackRedirect(this, uri) || redirectUriAllowed.call(this, uri);
  };
  provider.use(async (ctx, next) => {
    await next();
    if (ctx.oidc?.route === 'introspection' && ctx.body?.active && vendor?.answer) ctx.body = vendor.answer(ctx.body);
    if (vendor?.refuses && ctx.oidc?.body?.[vendor.refuses] !== undefined) {
      ctx.status = 400;
      ctx.body = { error: 'invalid_request', error_description: `${vendor.refuses} is no parameter here` };
    }
    if (ctx.oidc?.route === 'device_authorization' && ctx.body?.device_code && live.interval > 0) {
      ctx.body.interval = live.interval;
    }
    if (ctx.oidc?.route !== 'token') return;
    const grant = ctx.oidc.params?.grant_type ?? 'none';
    tokenCalls[grant] = (tokenCalls[grant] ?? 0) + 1;
    if (ctx.body?.error === 'authorization_pending' && live.slowDown > 0) {
      live.slowDown -= 1;
      ctx.body = { error: 'slow_down' };
    }
  });
  provider.on('server_error', (ctx, error) => console.error('server_error', error));
  return provider;
}

const page = (content) => `<!doctype html><title>Test issuer</title><body>${content}</body>`;

/**
 * Answers one login or consent prompt as the person named by the header `x-test-user`; `x-test-acr` says how well they proved it,
 * and `x-test-deny` refuses.
 */
export async function interact(provider, req, res) {
  const { prompt, grantId, session, params } = await provider.interactionDetails(req, res);
  const finish = (result, merge) =>
    provider.interactionFinished(req, res, result, { mergeWithLastSubmission: merge });
  if (req.headers['x-test-deny']) {
    return finish({ error: 'access_denied', error_description: 'the person said no' }, false);
  }
  if (prompt.name === 'login') {
    const user = req.headers['x-test-user'];
    if (!isPerson(user)) throw new Error(`x-test-user must name a person, not ${user}`);
    const acr = req.headers['x-test-acr'] ?? 'pwd';
    return finish({ login: { accountId: user, acr, amr: [acr] } }, false);
  }
  const { missingOIDCScope, missingOIDCClaims, missingResourceScopes } = prompt.details;
  const grant = grantId
    ? await provider.Grant.find(grantId)
    : new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  if (missingOIDCScope) grant.addOIDCScope(missingOIDCScope.join(' '));
  if (missingOIDCClaims) grant.addOIDCClaims(missingOIDCClaims);
  for (const [indicator, scopes] of Object.entries(missingResourceScopes ?? {})) {
    grant.addResourceScope(indicator, scopes.join(' '));
  }
  return finish({ consent: { grantId: await grant.save() } }, true);
}
