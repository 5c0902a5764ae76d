// What the provider asks about the certificate that a client showed in its TLS handshake (RFC 8705).

/** The certificate, or nothing. */
export const certificate = (ctx) => ctx.socket.getPeerX509Certificate?.();

/** Whether the tests' authority signed it. */
export const isAuthorized = (ctx) => ctx.socket.authorized === true;

/** Only subjects are registered here. */
export const subjectMatches = (ctx, property, expected) =>
  property === 'tls_client_auth_subject_dn' && certificate(ctx)?.subject === expected;

/** The endpoints at which a client may show one (RFC 8705 5). */
export const aliases = (origin) => ({
  token_endpoint: `${origin}/token`,
  introspection_endpoint: `${origin}/token/introspection`,
  revocation_endpoint: `${origin}/token/revocation`,
  device_authorization_endpoint: `${origin}/device/auth`,
});
