/** TLS to an upstream: `ca_file`, `cert_file`, `key_file`, `insecure_skip_verify`. */

import { readFile } from "node:fs/promises";
import { isIP } from "node:net";
import type { TlsConfig } from "../config/config.ts";
import { errorText, PermanentError } from "../core/errors.ts";

/** Options of `tls.connect`, as far as they are used here. */
export interface TlsOptions {
  rejectUnauthorized: boolean;
  ca?: string;
  cert?: string;
  key?: string;
  servername?: string;
}

/**
 * The options for a connection to `host`. Read anew for every connection, so that renewed certificates are picked up without a
 * restart. Throws PermanentError if a file cannot be read.
 */
export async function tlsOptions(tls: TlsConfig, host: string): Promise<TlsOptions> {
  const [ca, cert, key] = await Promise.all([
    readPem("ca_file", tls.caFile),
    readPem("cert_file", tls.certFile),
    readPem("key_file", tls.keyFile),
  ]);
  if ((cert === undefined) !== (key === undefined)) {
    throw new PermanentError("cert_file and key_file belong together: one of them is not set");
  }
  const options: TlsOptions = { rejectUnauthorized: !tls.insecureSkipVerify };
  if (ca !== undefined) options.ca = ca;
  if (cert !== undefined && key !== undefined) Object.assign(options, { cert, key });
  // Server Name Indication carries host names only (RFC 6066, section 3).
  if (isIP(host) === 0) options.servername = host;
  return options;
}

async function readPem(configKey: string, path: string | undefined): Promise<string | undefined> {
  if (path === undefined) return undefined;
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    throw new PermanentError(`cannot read ${configKey} ${path}: ${errorText(error)}; name a readable PEM file`);
  }
}
