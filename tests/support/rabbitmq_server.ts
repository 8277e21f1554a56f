/** A throw-away RabbitMQ node with nothing shared: own port mapper, cookie, folders, no plugins. */

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import amqp from "amqplib";
import {
  findProgram,
  freePort,
  overrideLines,
  programPaths,
  type Server,
  ServerProcess,
  type TlsFiles,
  Workspace,
} from "./server_process.ts";

export interface RabbitmqOptions {
  /** The port then speaks TLS only; client certificates are accepted, not required. */
  readonly tls?: TlsFiles;
  /** Lines of rabbitmq.conf, over the defaults. */
  readonly config?: readonly string[];
  /**
   * Arguments of the Erlang machine. By default its schedulers spin a little before they sleep, unlike RabbitMQ's own
   * setting: on small virtual machines waking them costs so much that a start takes 16 s instead of 5 s. And a queue is on
   * the disk as soon as it is declared: as it comes, the broker forgets it if it is killed in the two seconds after. Give
   * "" for a measurement of RabbitMQ as it comes.
   */
  readonly erlangArgs?: string;
}

const TEST_ARGS = "+sbwt short +sbwtdcpu short +sbwtdio short -mnesia dump_log_write_threshold 1";

/** Log in as guest/guest. */
export async function startRabbitmq(
  { tls, config = [], erlangArgs = TEST_ARGS }: RabbitmqOptions = {},
): Promise<Server> {
  // Asking it for its version would start a broker: look at the files only.
  const program = findProgram("RabbitMQ", serverScripts(), "rabbitmq-server");
  const epmd = findProgram("epmd", ["/usr/bin/epmd", ...programPaths("epmd")], "erlang-base");
  const [port, epmdPort, distPort] = [await freePort(), await freePort(), await freePort()];
  const workspace = new Workspace("rabbitmq");
  try {
    const env = writeConfig(workspace.dir, { port, epmdPort, distPort, erlangArgs }, tls, config);
    const uri = `${tls === undefined ? "amqp" : "amqps"}://guest:guest@127.0.0.1:${port}`;
    const server = new ServerProcess({
      name: "rabbitmq",
      port,
      uri,
      workspace,
      commands: [
        { file: epmd, args: ["-port", String(epmdPort), "-address", "127.0.0.1"], env },
        // With RABBITMQ_ALLOW_INPUT the script is replaced by the Erlang machine, which then needs -noinput all the same.
        { file: program, args: ["-noinput"], env },
      ],
      shutdownSignal: "SIGTERM",
      answers: () => logIn(uri, tls),
    });
    await server.start();
    return server;
  } catch (error) {
    await workspace.remove();
    throw error;
  }
}

interface NodeOptions {
  readonly port: number;
  readonly epmdPort: number;
  readonly distPort: number;
  readonly erlangArgs: string;
}

function writeConfig(
  dir: string,
  { port, epmdPort, distPort, erlangArgs }: NodeOptions,
  tls: TlsFiles | undefined,
  config: readonly string[],
): Record<string, string> {
  const listeners = tls === undefined ? [`listeners.tcp.1 = 127.0.0.1:${port}`] : [
    "listeners.tcp = none",
    `listeners.ssl.1 = 127.0.0.1:${port}`,
    `ssl_options.cacertfile = ${tls.caFile}`,
    `ssl_options.certfile = ${tls.certFile}`,
    `ssl_options.keyfile = ${tls.keyFile}`,
    "ssl_options.verify = verify_peer",
    "ssl_options.fail_if_no_peer_cert = false",
  ];
  const defaults = [...listeners, "log.console.level = warning", "disk_free_limit.absolute = 20MB"];
  writeFileSync(join(dir, "rabbitmq.conf"), overrideLines(defaults, config).join("\n") + "\n");
  writeFileSync(join(dir, "enabled_plugins"), "[].\n");
  writeFileSync(join(dir, "rabbitmq-env.conf"), "");
  writeFileSync(join(dir, ".erlang.cookie"), `PGPROXY${port}`, { mode: 0o400 });
  return {
    HOME: dir,
    ERL_EPMD_PORT: String(epmdPort),
    ERL_EPMD_ADDRESS: "127.0.0.1",
    RABBITMQ_NODENAME: `pgp${port}@localhost`,
    RABBITMQ_BASE: dir,
    RABBITMQ_CONF_ENV_FILE: join(dir, "rabbitmq-env.conf"),
    RABBITMQ_CONFIG_FILE: join(dir, "rabbitmq.conf"),
    RABBITMQ_CONFIG_FILES: join(dir, "conf.d"),
    RABBITMQ_ADVANCED_CONFIG_FILE: join(dir, "advanced.config"),
    RABBITMQ_ENABLED_PLUGINS_FILE: join(dir, "enabled_plugins"),
    RABBITMQ_GENERATED_CONFIG_DIR: join(dir, "generated"),
    RABBITMQ_MNESIA_BASE: join(dir, "mnesia"),
    RABBITMQ_LOG_BASE: join(dir, "log"),
    RABBITMQ_LOGS: "-",
    RABBITMQ_PID_FILE: join(dir, "pid"),
    RABBITMQ_DIST_PORT: String(distPort),
    RABBITMQ_ALLOW_INPUT: "1",
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: `-kernel inet_dist_use_interface {127,0,0,1} ${erlangArgs}`,
    ERL_CRASH_DUMP: "/dev/null",
  };
}

/**
 * Debian's wrapper in /usr/sbin changes to the user rabbitmq, who may not write to our folder; the scripts behind it do
 * not.
 */
function serverScripts(): string[] {
  const dir = "/usr/lib/rabbitmq/lib";
  let versions: string[] = [];
  try {
    versions = readdirSync(dir).sort().reverse();
  } catch {
    // Not Debian's layout.
  }
  return [
    ...versions.map((version) => join(dir, version, "sbin/rabbitmq-server")),
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/opt/homebrew/sbin/rabbitmq-server",
    ...programPaths("rabbitmq-server"),
  ];
}

async function logIn(uri: string, tls: TlsFiles | undefined): Promise<void> {
  const connection = await amqp.connect(uri, {
    timeout: 5_000,
    ...tls === undefined ? {} : { ca: [readFileSync(tls.caFile)] },
  });
  connection.on("error", () => {});
  await connection.close();
}
