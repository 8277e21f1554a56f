/** A throw-away Mosquitto. */

import { readFileSync, writeFileSync } from "node:fs";
import { connect as connectTcp } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { connect as connectTls } from "node:tls";
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

export interface MosquittoOptions {
  /** The port then speaks TLS only; client certificates are not asked for. */
  readonly tls?: TlsFiles;
  /** Lines of mosquitto.conf, over the defaults. */
  readonly config?: readonly string[];
}

/**
 * Anonymous clients are allowed. Sessions and queued messages survive `shutdown`; `kill` loses what was queued since the
 * last save, as Mosquitto does by default.
 */
export async function startMosquitto({ tls, config = [] }: MosquittoOptions = {}): Promise<Server> {
  const program = findProgram("Mosquitto", programPaths("mosquitto"), "mosquitto");
  const port = await freePort();
  const workspace = new Workspace("mosquitto");
  try {
    const defaults = [
      `listener ${port} 127.0.0.1`,
      ...tls === undefined ? [] : [`cafile ${tls.caFile}`, `certfile ${tls.certFile}`, `keyfile ${tls.keyFile}`],
      "allow_anonymous true",
      "persistence true",
      `persistence_location ${workspace.dir}/`,
      // The default drops what a slow consumer has not fetched yet beyond 1,000 messages.
      "max_queued_messages 0",
      "log_type error",
      "log_type warning",
      "log_dest stderr",
      // As root it would change to a user who may not write here.
      ...process.getuid?.() === 0 ? ["user root"] : [],
    ];
    const configFile = join(workspace.dir, "mosquitto.conf");
    writeFileSync(configFile, overrideLines(defaults, config).join("\n") + "\n");
    const server = new ServerProcess({
      name: "mosquitto",
      port,
      uri: `${tls === undefined ? "mqtt" : "mqtts"}://127.0.0.1:${port}`,
      workspace,
      commands: [{ file: program, args: ["-c", configFile] }],
      shutdownSignal: "SIGTERM",
      answers: () => exchange(port, MQTT_CONNECT, tls, (reply) => reply[0] === MQTT_CONNACK),
    });
    await server.start();
    return server;
  } catch (error) {
    await workspace.remove();
    throw error;
  }
}

// MQTT 3.1.1, section 3.1: CONNECT with a clean session, keep-alive 10 s and client id "up". Whether the broker accepts
// the client (it may ask for a password) is no matter here, that it answers is.
const MQTT_CONNECT = Uint8Array.from([0x10, 14, 0, 4, 0x4d, 0x51, 0x54, 0x54, 4, 2, 0, 10, 0, 2, 0x75, 0x70]);
const MQTT_CONNACK = 0x20;

/** Sends `request` and resolves when the first bytes of the answer satisfy `expected`. */
export function exchange(
  port: number,
  request: Uint8Array,
  tls: TlsFiles | undefined,
  expected: (reply: Uint8Array) => boolean,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = tls === undefined ? connectTcp(port, "127.0.0.1") : connectTls({
      port,
      host: "127.0.0.1",
      ca: readFileSync(tls.caFile),
      cert: readFileSync(tls.clientCertFile),
      key: readFileSync(tls.clientKeyFile),
    });
    socket.setTimeout(5_000, () => socket.destroy(new Error("no answer in 5 s")));
    socket.once("error", reject);
    socket.once("close", () => reject(new Error("closed without an answer")));
    socket.once(tls === undefined ? "connect" : "secureConnect", () => socket.write(request));
    socket.once("data", (reply: Uint8Array) => {
      if (expected(reply)) resolve();
      else reject(new Error(`unexpected answer ${JSON.stringify(String(reply))}`));
      socket.destroy();
    });
  });
}
