// A service that believes no header, but only what the relay signed: X-Postern-Assertion, checked with jose.
//
//   npm install jose
//   RELAY=https://relay.example.com SERVICE=billing PORT=8080 node app.mjs
//
// Answers 200 with what the assertion says, 401 without a good one, 503 while the relay's keys cannot be had.
import http from 'node:http';
import { createRemoteJWKSet, errors, jwtVerify } from 'jose';

const { RELAY = 'https://relay.example.com', SERVICE = 'billing', PORT = '8080' } = process.env;

// Fetched when needed and kept; the relay publishes a key days before it signs with it.
const keys = createRemoteJWKSet(new URL(`${RELAY}/.well-known/postern/jwks.json`));

const rules = {
  typ: 'postern-assertion+jwt',
  algorithms: ['ES256'],
  issuer: RELAY,
  audience: `${RELAY}/services/${SERVICE}`,
  clockTolerance: 30,
  // No assertion is made for longer; this has iat looked at, too.
  maxTokenAge: 300,
  requiredClaims: ['exp', 'iat', 'sub', 'jti'],
};

/** What the relay says of the caller; throws where it does not. Node joins repeated fields with a comma, which no assertion has. */
async function caller(req) {
  const assertion = req.headers['x-postern-assertion'];
  if (!assertion) throw new errors.JWTInvalid('an X-Postern-Assertion is needed');
  return (await jwtVerify(assertion, keys, rules)).payload;
}

function answer(res, status, body) {
  res.writeHead(status, { 'content-type': 'application/json' });
  res.end(JSON.stringify(body));
}

/** Whether an error says something about the assertion; any other means that the keys are not to be had. */
const isRefusal = (error) =>
  [errors.JWTInvalid, errors.JWTExpired, errors.JWTClaimValidationFailed, errors.JWSInvalid,
    errors.JWSSignatureVerificationFailed, errors.JWKSNoMatchingKey, errors.JOSEAlgNotAllowed,
    errors.JOSENotSupported].some((kind) => error instanceof kind);

const server = http.createServer((req, res) => {
  caller(req)
    // Whoever decides by name needs both: a subject is a name at its issuer only.
    .then(({ sub, issuer, roles }) => answer(res, 200, { sub, issuer, roles }))
    .catch((error) => answer(res, isRefusal(error) ? 401 : 503, { error: error.message }));
});
server.listen(Number(PORT), '127.0.0.1', () => console.log(`ready ${server.address().port}`));
