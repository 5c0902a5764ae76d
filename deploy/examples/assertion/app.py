"""A service that believes no header, but only what the relay signed: X-Postern-Assertion, checked with PyJWT.

    pip install 'pyjwt[crypto]'
    RELAY=https://relay.example.com SERVICE=billing PORT=8080 python3 app.py

Answers 200 with what the assertion says, 401 without a good one, 503 while the relay's keys cannot be had.
"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt

RELAY = os.environ.get("RELAY", "https://relay.example.com")
SERVICE = os.environ.get("SERVICE", "billing")
TYPE = "postern-assertion+jwt"

# Fetched once and kept; the relay publishes a key days before it signs with it.
KEYS = jwt.PyJWKClient(f"{RELAY}/.well-known/postern/jwks.json", lifespan=3600, timeout=5)


def caller(assertion):
    """What the relay says of the caller, or jwt.InvalidTokenError."""
    header = jwt.get_unverified_header(assertion)
    if header.get("typ") != TYPE:
        raise jwt.InvalidTokenError("it is no assertion")
    return jwt.decode(
        assertion,
        KEYS.get_signing_key_from_jwt(assertion),
        algorithms=["ES256"],
        issuer=RELAY,
        audience=f"{RELAY}/services/{SERVICE}",
        leeway=30,
        options={"require": ["exp", "iat", "sub", "jti"]},
    )


class App(BaseHTTPRequestHandler):
    def do_GET(self):
        assertions = self.headers.get_all("X-Postern-Assertion", [])
        try:
            if len(assertions) != 1:
                raise jwt.InvalidTokenError("exactly one X-Postern-Assertion is needed")
            claims = caller(assertions[0])
        except jwt.PyJWKClientConnectionError as why:
            return self.answer(503, {"error": str(why)})
        except (jwt.InvalidTokenError, jwt.PyJWKClientError) as why:
            return self.answer(401, {"error": str(why)})
        # Whoever decides by name needs both: a subject is a name at its issuer only.
        return self.answer(200, {"sub": claims["sub"], "issuer": claims["issuer"], "roles": claims["roles"]})

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), App)
    print(f"ready {server.server_port}", flush=True)
    server.serve_forever()
