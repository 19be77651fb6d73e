// An identity provider for the tests: oidc-provider with its own login forms, over TLS.
//
//   node provider.mjs NODE_MODULES KEY CERTIFICATE ADDRESS HOST BACK BACKCHANNEL CLAIMS
//
// ADDRESS (IPV4:PORT, 0 for a free one) is listened at, as HOST. BACK: where browsers are sent back to. BACKCHANNEL: where logout tokens go; CLIENT in it
// is the client's name. CLAIMS: `id_token` where the ID token
// has the user's name itself; otherwise it has to be asked for at the userinfo endpoint.
// It prints `listening on PORT`, each request, and `rotated` after SIGHUP has given it other keys.

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, key, certificate, address, host, back, backchannel, claims] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(join(modules, 'oidc-provider/lib/index.js')).href);

const GONE = 'https://app.example/gone';

function client(name, more) {
  return {
    client_id: name,
    client_secret: `the secret of ${name}: +&%=`,
    redirect_uris: [back],
    post_logout_redirect_uris: [GONE],
    backchannel_logout_uri: backchannel.replace('CLIENT', name),
    backchannel_logout_session_required: true,
    ...more,
  };
}

const clients = [
  ...['RS256', 'PS256', 'ES256', 'EdDSA'].map((name) => client(name, { id_token_signed_response_alg: name })),
  client('by-sub', { backchannel_logout_session_required: false }),
  client('by-post', { token_endpoint_auth_method: 'client_secret_post' }),
  client('unsigned', { id_token_signed_response_alg: 'HS256' }),
];

function jwk(kind, options) {
  const pair = generateKeyPairSync(kind, options);
  return { ...pair.privateKey.export({ format: 'jwk' }), use: 'sig', kid: randomBytes(6).toString('hex') };
}

function make(issuer) {
  return new Provider(issuer, {
    clients,
    jwks: {
      keys: [jwk('rsa', { modulusLength: 2048 }), jwk('ec', { namedCurve: 'P-256' }), jwk('ed25519', {})],
    },
    claims: { openid: ['sub'], profile: ['preferred_username'], email: ['email', 'email_verified'] },
    conformIdTokenClaims: claims !== 'id_token',
    features: { backchannelLogout: { enabled: true } },
    cookies: { keys: [randomBytes(16).toString('hex')] },
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA', 'HS256'] },
    // its own would not send anything to 127.0.0.1
    fetch: (url, { dispatcher, ...options }) => globalThis.fetch(url, options),
    findAccount: (context, id) => ({
      accountId: id,
      claims: () =>
        id.startsWith('nameless')
          ? { sub: id, email: 'root@example.com', email_verified: false }
          : { sub: id, preferred_username: id, email: `${id}@example.com`, email_verified: true },
    }),
  });
}

let handle;
const server = createServer(
  { key: readFileSync(key), cert: readFileSync(certificate) },
  (request, response) => {
    console.log(`${request.method} ${request.url.split('?')[0]}`);
    handle(request, response);
  },
);
const [ip, wanted] = address.split(':');
server.listen(wanted, ip, () => {
  const { port } = server.address();
  const start = () => {
    const provider = make(`https://${host}:${port}`);
    for (const event of ['server_error', 'backchannel.error', 'grant.error', 'authorization.error']) {
      provider.on(event, (...all) => console.log(event, all.find((one) => one instanceof Error)?.stack));
    }
    handle = provider.callback();
  };
  start();
  process.on('SIGHUP', () => {
    start();
    console.log('rotated');
  });
  console.log(`listening on ${port}`);
});
