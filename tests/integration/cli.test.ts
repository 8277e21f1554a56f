/** The command line as its users see it. */

import assert from "node:assert/strict";
import { runProxy } from "../support/proxy.ts";
import { iniText, scenario, waitForPrinted } from "../support/scenario.ts";

const CONFIG = iniText({
  local: { postgresql_uri: "postgresql://ann:pg-s3cret@db.example:6543/shop?sslmode=disable", upstream: "amqp" },
  "local.upstream_config": {
    uri: "amqp://bob:mq-s3cret@mq.example//",
    bridge_channels: "events->exchange:amq.topic , wal2json->exchange:amq.topic",
  },
});

scenario("--help tells the commands, and run --help every key", async () => {
  const help = await runProxy({ args: ["--help"] });
  assert.equal(help.code, 0);
  assert.equal(help.stderr, "");
  for (const word of ["SYNOPSIS", "run", "check", "tail", "config", "--version", "EXAMPLES", "config --example"]) {
    assert.ok(help.stdout.includes(word), word);
  }
  const keys = await runProxy({ args: ["run", "--help"] });
  assert.equal(keys.code, 0);
  for (const key of ["postgresql_uri", "replication_slot", "wal2json_params", "bridge_channels", "delivery_mode"]) {
    assert.ok(keys.stdout.includes(key), key);
  }
});

scenario("--version tells the version", async () => {
  for (const flag of ["--version", "-V"]) {
    const { code, stdout, stderr } = await runProxy({ args: [flag] });
    assert.equal(code, 0);
    assert.match(stdout, /^(pg-event-proxy )?\d+\.\d+\.\d+\b.*\n$/);
    assert.equal(stderr, "");
  }
});

scenario("config prints what would be used, where it comes from, and no password", async () => {
  const { code, stdout, stderr } = await runProxy({
    args: ["config", "my.ini"],
    files: { "my.ini": CONFIG, "mode.txt": "1\n" },
    env: {
      "PGPROXY_LOCAL__REPLICATION_SLOT": "from_environment",
      "PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MODE_FILE": "mode.txt",
    },
  });
  assert.equal(code, 0, stderr);
  assert.equal(stderr, "");
  assert.ok(!stdout.includes("s3cret"), stdout);
  const lines = stdout.split("\n");
  const above = (line: string) => {
    const index = lines.indexOf(line);
    assert.ok(index > 0, `${line} in\n${stdout}`);
    return lines[index - 1];
  };
  assert.match(above("replication_slot=from_environment") ?? "", /PGPROXY_LOCAL__REPLICATION_SLOT/);
  assert.match(above("upstream=amqp") ?? "", /my\.ini line \d+/);
  assert.match(
    above("delivery_mode=1") ?? "",
    /PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MODE_FILE, read from "mode\.txt"/,
  );
  assert.match(above("declare=false") ?? "", /default/);
  assert.ok(lines.includes("bridge_channels=events->exchange:amq.topic, wal2json->exchange:amq.topic"), stdout);
  const again = await runProxy({ args: ["config", "--config", "printed.ini"], files: { "printed.ini": stdout } });
  assert.equal(again.code, 0, again.stderr);
  const values = (text: string) => text.split("\n").filter((line) => !line.startsWith("#"));
  assert.deepEqual(values(again.stdout), values(stdout), "what it prints loads as the same");
});

scenario("config --example loads again, and runs on a database", async (scope) => {
  const example = await runProxy({ args: ["config", "--example"] });
  assert.equal(example.code, 0);
  assert.match(example.stdout, /^# /);
  const loaded = await runProxy({ args: ["config", "example.ini"], files: { "example.ini": example.stdout } });
  assert.equal(loaded.code, 0, loaded.stderr);
  const database = await scope.database();
  const proxy = await scope.readyProxy({
    args: ["run", "-c", "example.ini"],
    files: { "example.ini": example.stdout },
    env: { "PGPROXY_DATABASE-URI": database.uri, "PGPROXY_DATABASE-REPLICATION_SLOT": database.name },
  });
  await database.sql`notify events, 'from the example'`;
  const [event] = await waitForPrinted(proxy, 1);
  assert.equal(event?.text, "from the example");
});

scenario("every line of the example that is commented out is a valid setting", async () => {
  const { stdout } = await runProxy({ args: ["config", "--example"] });
  // The client certificate's files do not exist, and the slot's name stands in both forms for two databases.
  const all = stdout.split("\n").map((line) => line.replace(/^;/, ""))
    .filter((line) => !/^(ca_file|cert_file|key_file|insecure_skip_verify)=/.test(line)).join("\n");
  const { code, stderr } = await runProxy({ args: ["config", "all.ini"], files: { "all.ini": all } });
  assert.equal(stderr, "");
  assert.equal(code, 0);
});

scenario("a command line that is wrong ends with 2 and says so in a line", async () => {
  const cases: ReadonlyArray<readonly [readonly string[], RegExp]> = [
    [["config", "--exmaple"], /unknown option '--exmaple'/],
    [["--no-such-option"], /unknown option '--no-such-option'/],
    [["a.ini", "b.ini"], /too many arguments/],
    [["run", "a.ini", "--config", "b.ini"], /two configuration files/],
    [["no-such-command"], /no-such-command/],
    [["missing.ini"], /missing\.ini/],
    [[], /nothing is configured/],
  ];
  await Promise.all(cases.map(async ([args, message]) => {
    const { code, stdout, stderr } = await runProxy({ args });
    assert.equal(code, 2, `${args.join(" ")}: ${stderr}`);
    assert.match(stderr, message);
    assert.equal(stdout, "");
    assert.ok(stderr.trim().split("\n").length <= 3, stderr);
    assert.doesNotMatch(stderr, /^\s+at /m);
  }));
});

scenario("--help of each command is a manual page", async () => {
  const commands = ["run", "config", "sql", "check", "tail", "completion"];
  await Promise.all(commands.map(async (command) => {
    const { code, stdout, stderr } = await runProxy({ args: [command, "--help"] });
    assert.equal(code, 0);
    assert.equal(stderr, "");
    const titles = stdout.split("\n").filter((line) => /^[A-Z ]+$/.test(line));
    for (const title of ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS"]) {
      assert.ok(titles.includes(title), `${command}: ${title}`);
    }
    assert.match(stdout, new RegExp(`^NAME\n  pg-event-proxy ${command} - \\S`));
    assert.ok(stdout.split("\n").every((line) => line.length <= 150), command);
  }));
});
