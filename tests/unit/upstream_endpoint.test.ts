import assert from "node:assert/strict";
import { test } from "node:test";
import { PermanentError, TransientError } from "../../src/core/errors.ts";
import { connectError, parseEndpoint } from "../../src/upstreams/endpoint.ts";
import { tlsOptions } from "../../src/upstreams/tls.ts";
import { NO_TLS } from "../support/upstream_contract.ts";

const PORTS = { amqp: 5672, amqps: 5671 };

test("an upstream's URI: host, port, percent-encoded user and password, path", () => {
  const cases: [string, object][] = [
    ["amqp://rabbitmq", { scheme: "amqp", host: "rabbitmq", port: 5672, path: "", username: undefined }],
    ["AMQPS://rabbitmq/", { scheme: "amqps", port: 5671, path: "/" }],
    ["amqp://user:pass@rabbitmq//", { username: "user", password: "pass", path: "//" }],
    ["amqp://us%40er:p%3A%2F%25@h:99/v%2Fh", { username: "us@er", password: "p:/%", port: 99, path: "/v%2Fh" }],
    ["amqp://[::1]:5673", { host: "::1", port: 5673, text: "[::1]:5673" }],
    ["amqp://host_with_underscore:1", { host: "host_with_underscore", text: "host_with_underscore:1" }],
    ["amqp://:only-password@h", { username: undefined, password: "only-password" }],
    ["amqp://", { host: "localhost", text: "localhost:5672" }],
  ];
  for (const [uri, expected] of cases) {
    const endpoint: object = parseEndpoint(uri, PORTS);
    const seen = Object.fromEntries(Object.keys(expected).map((key) => [key, Reflect.get(endpoint, key)]));
    assert.deepEqual(seen, expected, uri);
  }
});

test("an upstream's URI that is of no use is a permanent fault, told without the URI", () => {
  for (const uri of ["", "rabbitmq:5672", "http://user:hidden@h", "amqp://user:hidden%@h", "amqp://h:99999/hidden"]) {
    assert.throws(() => parseEndpoint(uri, PORTS), (error) => {
      assert.ok(error instanceof PermanentError);
      assert.match(error.message, /uri/);
      assert.doesNotMatch(error.message, /hidden/);
      return true;
    });
  }
});

test("faults of a connection: certificates are permanent, the rest passes", () => {
  const endpoint = parseEndpoint("amqps://h", PORTS);
  const faults: [string, string | undefined, boolean][] = [
    ["connect ECONNREFUSED 127.0.0.1:5671", "ECONNREFUSED", false],
    ["read ECONNRESET", "ECONNRESET", false],
    ["getaddrinfo ENOTFOUND h", "ENOTFOUND", false],
    ["self-signed certificate in certificate chain", "SELF_SIGNED_CERT_IN_CHAIN", true],
    ["unable to verify the first certificate", "UNABLE_TO_VERIFY_LEAF_SIGNATURE", true],
    ["certificate has expired", "CERT_HAS_EXPIRED", true],
    ["Hostname/IP does not match certificate's altnames", "ERR_TLS_CERT_ALTNAME_INVALID", true],
    ["invalid peer certificate: UnknownIssuer", undefined, true],
    ["received fatal alert: CertificateRequired", undefined, true],
    ["tlsv13 alert certificate required", "ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED", true],
    ["error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER", undefined, true],
    ["error:0A00010B:SSL routines::wrong version number", "ERR_SSL_WRONG_VERSION_NUMBER", true],
  ];
  for (const [text, code, permanent] of faults) {
    const error = connectError("RabbitMQ", endpoint, Object.assign(new Error(text), { code }));
    assert.equal(error instanceof PermanentError, permanent, text);
    assert.equal(error instanceof TransientError, !permanent, text);
    assert.match(error.message, /^cannot connect to RabbitMQ at h:5671: /);
    assert.ok(error.message.includes(text));
  }
});

test("TLS names the server by its host name, never by its address", async () => {
  assert.equal((await tlsOptions(NO_TLS, "broker.example")).servername, "broker.example");
  for (const address of ["127.0.0.1", "::1"]) assert.equal((await tlsOptions(NO_TLS, address)).servername, undefined);
  assert.equal((await tlsOptions(NO_TLS, "h")).rejectUnauthorized, true);
  assert.equal((await tlsOptions({ ...NO_TLS, insecureSkipVerify: true }, "h")).rejectUnauthorized, false);
});
