/** A throw-away Redis. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { exchange } from "./mosquitto_server.ts";
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

export interface RedisOptions {
  /** The port then speaks TLS only; client certificates are accepted, not required. */
  readonly tls?: TlsFiles;
  /** Lines of redis.conf, over the defaults. */
  readonly config?: readonly string[];
}

export async function startRedis({ tls, config = [] }: RedisOptions = {}): Promise<Server> {
  const program = findProgram("Redis", programPaths("redis-server"), "redis-server");
  const port = await freePort();
  const workspace = new Workspace("redis");
  try {
    const listener = tls === undefined ? [`port ${port}`] : [
      "port 0",
      `tls-port ${port}`,
      `tls-cert-file ${tls.certFile}`,
      `tls-key-file ${tls.keyFile}`,
      `tls-ca-cert-file ${tls.caFile}`,
      "tls-auth-clients optional",
    ];
    // The append-only file keeps streams through `kill`: what the kernel has is not lost with the process.
    const defaults = [
      ...listener,
      "bind 127.0.0.1",
      `dir ${workspace.dir}`,
      'save ""',
      "appendonly yes",
      "appendfsync no",
    ];
    const configFile = join(workspace.dir, "redis.conf");
    writeFileSync(configFile, overrideLines(defaults, config).join("\n") + "\n");
    const server = new ServerProcess({
      name: "redis",
      port,
      uri: `${tls === undefined ? "redis" : "rediss"}://127.0.0.1:${port}`,
      workspace,
      commands: [{ file: program, args: [configFile] }],
      shutdownSignal: "SIGTERM",
      // +PONG, or -NOAUTH where the configuration asks for a password; -LOADING is not ready.
      answers: () => exchange(port, Buffer.from("PING\r\n"), tls, (reply) => /^(\+PONG|-NOAUTH)/.test(String(reply))),
    });
    await server.start();
    return server;
  } catch (error) {
    await workspace.remove();
    throw error;
  }
}
