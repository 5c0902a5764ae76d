// How well-known providers differ from this one, for pages that are read to their users: the path of their issuer, the clients that the
// page has them set up, what they ask of a login, and what their access tokens, or their answers about them, say. After the shapes that
// the relay's own tests have of real tokens (common/gate/src/token/tests/vendors.rs).

const words = (text) => (text ?? '').split(' ').filter(Boolean);

const TENANT = '11111111-2222-3333-4444-555555555555';
const API = 'aaaaaaaa-1111-2222-3333-444444444444';
const CLERKS = 'cccccccc-1111-2222-3333-444444444444';

/**
 * `path` of the issuer; `people`: the public client; `programs` by id with how they prove themselves; `scopes` beyond the usual; `dpop`:
 * whether it can bind tokens; `refuses` a parameter of logins; `wants` one, without which tokens are opaque; `opaque` ones it gives where
 * only its answers matter; `shape` makes a token's header and claims those of the vendor, `answer` what introspection says.
 */
export const vendors = {
  keycloak: {
    path: '/realms/corp',
    people: 'postern-cli',
    programs: {},
    dpop: true,
    shape: ({ client_id: azp, groups, ...rest }) => [
      { typ: 'JWT' },
      {
        ...rest,
        typ: rest.cnf ? 'DPoP' : 'Bearer',
        azp,
        aud: [rest.aud, 'account'],
        preferred_username: groups ? rest.sub : `service-account-${azp}`,
        realm_access: { roles: ['offline_access', ...(groups?.includes('finance') ? ['clerk'] : [])] },
        groups: groups?.map((name) => `/${name}`),
      },
    ],
  },
  okta: {
    path: '/oauth2/default',
    people: '0oaexamplecli',
    programs: { '0oaexamplebatch': 'private_key_jwt' },
    dpop: true,
    shape: ({ client_id: cid, scope, ...rest }) => [
      { typ: undefined },
      {
        ...rest,
        ver: 1,
        cid,
        sub: rest.groups ? `${rest.sub}@example.com` : rest.sub,
        scp: words(scope),
        groups: rest.groups && [...rest.groups, 'Everyone'],
      },
    ],
  },
  auth0: {
    path: '/',
    people: 'auth0examplecli',
    programs: { auth0examplebatch: 'client_secret_post' },
    wants: 'audience',
    shape: ({ client_id: azp, groups, ...rest }, issuer) => [
      { typ: 'JWT' },
      {
        ...rest,
        azp,
        sub: groups ? `auth0|${rest.sub}` : `${azp}@clients`,
        ...(groups
          ? { aud: [rest.aud, `${issuer}userinfo`], 'https://example.com/roles': groups.includes('finance') ? ['clerk'] : [] }
          : { gty: 'client-credentials' }),
      },
    ],
  },
  entra: {
    path: `/${TENANT}/v2.0`,
    people: 'bbbbbbbb-1111-2222-3333-444444444444',
    programs: { 'dddddddd-1111-2222-3333-444444444444': 'client_secret_post' },
    scopes: [`api://${API}/invoices.read`, `api://${API}/.default`],
    refuses: 'resource',
    shape: ({ client_id: azp, scope, groups, sub, ...rest }) => [
      { typ: 'JWT' },
      {
        ...rest,
        aud: API,
        azp,
        tid: TENANT,
        ver: '2.0',
        sub: groups ? 'pairwise' : azp,
        ...(groups
          ? {
              preferred_username: `${sub}@example.com`,
              scp: words(scope).map((name) => name.replace(`api://${API}/`, '')).join(' '),
              groups: groups.includes('finance') ? [CLERKS] : [],
            }
          : { idtyp: 'app', roles: ['Clerk'] }),
      },
    ],
  },
  dex: {
    path: '',
    people: 'postern-cli',
    programs: { postern: 'client_secret_basic' },
    scopes: ['groups', 'audience:server:client_id:postern'],
    opaque: true,
    answer: ({ groups, email, ...rest }) => ({
      ...rest,
      aud: ['postern', rest.client_id],
      username: rest.sub,
      token_use: 'access_token',
      ext: { groups: groups?.map((name) => `${name}@example.com`), email },
    }),
  },
};

/** For every token: what the vendor's says in the place of what this issuer would. */
export const customizer = (vendor, issuer) => (ctx, token, parts) => {
  const [header, payload] = vendor.shape(parts.payload, issuer);
  Object.assign(parts, { header, payload: JSON.parse(JSON.stringify(payload)) });
};
