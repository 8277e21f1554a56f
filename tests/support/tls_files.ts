/** Certificates for one test run, made with the openssl command line tool. */

import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { findProgram, programPaths, runProgram, type TlsFiles, Workspace } from "./server_process.ts";

export interface RemovableTlsFiles extends TlsFiles {
  /** Idempotent; also done by itself when this process ends. */
  remove(): Promise<void>;
}

/** A CA, a server certificate for `names`, and a client certificate for `proxy_user`. */
export async function makeTlsFiles(names = "DNS:localhost,IP:127.0.0.1"): Promise<RemovableTlsFiles> {
  const openssl = findProgram("openssl", programPaths("openssl"), "openssl");
  const workspace = new Workspace("tls");
  const path = (name: string) => join(workspace.dir, name);
  const run = (args: readonly string[]) => runProgram(openssl, args, { env: { HOME: workspace.dir } });
  const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"];
  const sign = async (name: string, commonName: string, extensions: string) => {
    await run([
      "req",
      "-new",
      ...newKey.slice(0, -2),
      "-subj",
      `/CN=${commonName}`,
      "-keyout",
      path(`${name}.key`),
      "-out",
      path(`${name}.csr`),
    ]);
    writeFileSync(path(`${name}.ext`), extensions);
    await run([
      "x509",
      "-req",
      "-in",
      path(`${name}.csr`),
      "-CA",
      path("ca.crt"),
      "-CAkey",
      path("ca.key"),
      "-CAcreateserial",
      "-days",
      "30",
      "-extfile",
      path(`${name}.ext`),
      "-out",
      path(`${name}.crt`),
    ]);
    chmodSync(path(`${name}.key`), 0o600);
  };
  try {
    await run([
      "req",
      "-x509",
      ...newKey,
      "-subj",
      "/CN=pg-event-proxy test CA",
      "-keyout",
      path("ca.key"),
      "-out",
      path("ca.crt"),
    ]);
    await sign("server", "localhost", `subjectAltName=${names}\nextendedKeyUsage=serverAuth\n`);
    await sign("client", "proxy_user", "extendedKeyUsage=clientAuth\n");
  } catch (error) {
    await workspace.remove();
    throw error;
  }
  return {
    dir: workspace.dir,
    caFile: path("ca.crt"),
    certFile: path("server.crt"),
    keyFile: path("server.key"),
    clientCertFile: path("client.crt"),
    clientKeyFile: path("client.key"),
    remove: () => workspace.remove(),
  };
}
