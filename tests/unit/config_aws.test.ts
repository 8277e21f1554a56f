import assert from "node:assert/strict";
import { test } from "node:test";
import { awsTargetProblem, readAwsUri } from "../../src/config/aws.ts";
import { loadConfig } from "../../src/config/load.ts";
import { ConfigError } from "../../src/core/errors.ts";

test("a region or an emulator", () => {
  for (const region of ["eu-west-2", "us-gov-east-1", "ap-southeast-7", "cn-north-1", "eusc-de-east-1"]) {
    assert.deepEqual(readAwsUri(`aws://${region}`), { region, endpoint: undefined, text: region });
    assert.deepEqual(readAwsUri(`aws://${region}/`), { region, endpoint: undefined, text: region });
  }
  assert.deepEqual(readAwsUri("aws://localhost:4566"), {
    region: "us-east-1",
    endpoint: "http://localhost:4566",
    text: "localhost:4566",
  });
  assert.deepEqual(readAwsUri("aws://[::1]:4566?region=eu-west-2"), {
    region: "eu-west-2",
    endpoint: "http://[::1]:4566",
    text: "[::1]:4566",
  });
});

const FAULTY_URIS: [string, RegExp][] = [
  ["aws://localhost", /names "localhost", which is no region and has no port; wanted aws:\/\/REGION/],
  ["aws://key:s3cret@eu-west-2", /holds a user; credentials come from where the AWS CLI has them/],
  ["aws://eu-west-2/queue", /has the path "\/queue"/],
  ["aws://eu-west-2?region=eu-west-1", /has the parameter "region" and no port; write aws:\/\/eu-west-1/],
  ["aws://h:1?profile=x", /has the parameter "profile"; allowed: region/],
  ["https://sqs.eu-west-2.amazonaws.com", /has the scheme https:\/\//],
  ["eu-west-2", /cannot be parsed/],
];
for (const [uri, expected] of FAULTY_URIS) {
  test(`not ${uri.replace(/:s3cret/, "")}`, () => {
    const problem = readAwsUri(uri);
    assert.ok(typeof problem === "string");
    assert.match(problem, expected);
    assert.doesNotMatch(problem, /s3cret/);
  });
}

test("targets", () => {
  const fine: [Parameters<typeof awsTargetProblem>[0], string][] = [
    ["awssns", "arn:aws:sns:eu-west-2:123456789012:orders"],
    ["awssns", "arn:aws-cn:sns:eu-west-2:123456789012:orders.fifo"],
    ["awssqs", "orders"],
    ["awssqs", "orders-1_x.fifo"],
    ["awssqs", "https://sqs.eu-west-2.amazonaws.com/123456789012/orders"],
    ["awslambda", "on-event"],
    ["awslambda", "on-event:live"],
    ["awslambda", "on-event:$LATEST"],
    ["awslambda", "123456789012:function:on-event"],
    ["awslambda", "arn:aws:lambda:eu-west-2:123456789012:function:on-event:7"],
  ];
  for (const [kind, name] of fine) assert.equal(awsTargetProblem(kind, name, "eu-west-2"), undefined, name);
  const faulty: [Parameters<typeof awsTargetProblem>[0], string, RegExp][] = [
    ["awssns", "orders", /wanted its ARN/],
    ["awssns", "arn:aws:sns:eu-west-1:123456789012:orders", /of the region eu-west-1, and uri names eu-west-2/],
    ["awssqs", "two words", /is no queue/],
    ["awssqs", "x".repeat(81), /at most 80/],
    ["awssqs", "https://", /is no queue/],
    ["awslambda", "a/b", /is no function/],
  ];
  for (const [kind, name, expected] of faulty) assert.match(awsTargetProblem(kind, name, "eu-west-2") ?? "", expected);
});

function load(env: Record<string, string>) {
  const base = { "PGPROXY_DATABASE-URI": "postgres://u@h/db" };
  const prefixed = Object.entries(env).map(([key, value]) => [`PGPROXY_UPSTREAM-X-${key}`, value]);
  return loadConfig({ env: { ...base, ...Object.fromEntries(prefixed) }, readFile: () => "" }).config;
}

test("the keys of the AWS kinds", () => {
  const { bridges } = load({
    KIND: "awslambda",
    URI: "aws://eu-west-2",
    BRIDGE_CHANNELS: "wal2json->function:on-event",
    CONCURRENCY: "8",
    INVOCATION_TYPE: "RequestResponse",
  });
  const [upstream] = bridges[0]!.upstreams;
  assert.ok(upstream?.kind === "awslambda");
  assert.equal(upstream.concurrency, 8);
  assert.equal(upstream.invocationType, "RequestResponse");
});

test("faults are told before anything is connected", () => {
  const problems = (env: Record<string, string>): readonly string[] => {
    try {
      load(env);
      return [];
    } catch (error) {
      assert.ok(error instanceof ConfigError);
      return error.problems;
    }
  };
  const sns = {
    KIND: "awssns",
    URI: "aws://eu-west-2",
    BRIDGE_CHANNELS: "a->topic:arn:aws:sns:eu-west-1:123456789012:t",
  };
  assert.match(problems(sns)[0] ?? "", /BRIDGE_CHANNELS: item 1 .*of the region eu-west-1/);
  // An emulator may have topics of any region.
  assert.deepEqual(problems({ ...sns, URI: "aws://127.0.0.1:4566" }), []);
  assert.match(
    problems({ ...sns, URI: "aws://u:p@eu-west-1" })[0] ?? "",
    /URI: "aws:\/\/u:\*\*\*@eu-west-1" holds a user/,
  );
  assert.match(
    problems({ ...sns, URI: "aws://eu-west-1", CA_FILE: "/ca" })[0] ?? "",
    /CA_FILE: is not a key of the kind/,
  );
});
