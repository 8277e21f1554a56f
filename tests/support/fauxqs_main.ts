/**
 * The SQS and SNS emulator fauxqs, as a process of its own; runs under Deno, which has the `node:sqlite` that it keeps
 * its state with. Usage: fauxqs_main.ts PORT DATA_DIR
 */

import { Server } from "node:http";
import process from "node:process";

const [port = "", dataDir = ""] = process.argv.slice(2);

// It listens on every address and has no option for one; here nobody else is to reach it.
const listen = Server.prototype.listen;
Server.prototype.listen = function (this: Server, options: { port: number }, ...more: unknown[]) {
  return Reflect.apply(listen, this, [{ ...options, host: "127.0.0.1" }, ...more]);
} as typeof listen;

const { startFauxqs } = await import("fauxqs");
await startFauxqs({ port: Number(port), logger: false, dataDir });
