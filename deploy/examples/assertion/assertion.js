// Checks X-Postern-Assertion in nginx; see nginx.conf. Answers 401 without a good one, 503 while the relay's keys cannot be had.

const TYPE = 'postern-assertion+jwt';
// Seconds that clocks may differ.
const LEEWAY = 30;
// What comes before the point of a P-256 key in its SubjectPublicKeyInfo (RFC 5480).
const P256 = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex');

function refuse(why) {
  throw new Error(why);
}

function json(part) {
  return JSON.parse(Buffer.from(part, 'base64url').toString());
}

async function keys(r) {
  const answer = await r.subrequest('/.postern-keys');
  if (answer.status !== 200) return undefined;
  return JSON.parse(answer.responseText).keys;
}

function imported(key) {
  const point = Buffer.concat([P256, Buffer.from(key.x, 'base64url'), Buffer.from(key.y, 'base64url')]);
  return crypto.subtle.importKey('spki', point, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['verify']);
}

async function claims(assertion, published, relay, service) {
  const parts = assertion.split('.');
  if (parts.length !== 3) refuse('not a JWT');
  const header = json(parts[0]);
  if (header.typ !== TYPE || header.alg !== 'ES256' || header.crit !== undefined) refuse('no assertion');
  const key = published.find((one) => one.kid === header.kid && one.crv === 'P-256');
  if (!key) refuse('signed with another key');
  const signed = Buffer.from(`${parts[0]}.${parts[1]}`);
  const signature = Buffer.from(parts[2], 'base64url');
  const verifier = await imported(key);
  const isGood = await crypto.subtle.verify({ name: 'ECDSA', hash: 'SHA-256' }, verifier, signature, signed);
  if (!isGood) refuse('a forged signature');
  const said = json(parts[1]);
  const now = Date.now() / 1000;
  if (said.iss !== relay) refuse('of another relay');
  if (said.aud !== `${relay}/services/${service}`) refuse('for another service');
  if (!(said.exp > now - LEEWAY)) refuse('expired');
  if (!(said.iat < now + LEEWAY)) refuse('not valid yet');
  if (!said.sub || !said.jti) refuse('it names nobody');
  return said;
}

async function check(r) {
  try {
    // Repeated fields are joined with a comma, which no assertion has.
    const assertion = r.headersIn['X-Postern-Assertion'];
    if (!assertion) refuse('an X-Postern-Assertion is needed');
    const published = await keys(r);
    if (!published) {
      r.return(503, 'the keys of the relay cannot be had\n');
      return;
    }
    const said = await claims(assertion, published, r.variables.postern_relay, r.variables.postern_service);
    r.variables.postern_subject = encodeURIComponent(said.sub);
    r.variables.postern_issuer = said.issuer;
    r.internalRedirect('@app');
  } catch (e) {
    r.return(401, `${e.message}\n`);
  }
}

export default { check };
