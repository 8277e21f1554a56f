/** `~/.pgpass`: lines of `hostname:port:database:username:password`. PostgreSQL documentation, "The Password File". */

import type { Host, UriEnvironment } from "./uri_environment.ts";

/** The password of the first line that fits; undefined without one, or where others may read the file (as libpq does). */
export function passwordFromFile(
  path: string,
  host: Host,
  database: string,
  user: string,
  outside: UriEnvironment,
): string | undefined {
  const file = outside.readTextFile(path);
  if (file === undefined || (file.mode & 0o077) !== 0) return undefined;
  const hostNames = host.host.startsWith("/") ? ["localhost", host.host] : [host.host];
  const wanted = [hostNames, [String(host.port)], [database], [user]];
  for (const line of file.text.split(/\r?\n/)) {
    if (line === "" || line.startsWith("#")) continue;
    const fields = splitLine(line);
    if (fields.length < 5) continue;
    const fits = wanted.every((values, i) => fields[i] === "*" || values.includes(unescape(fields[i]!)));
    if (fits) return unescape(fields[4]!);
  }
  return undefined;
}

/** Splits at the first four unescaped colons. */
function splitLine(line: string): string[] {
  const fields: string[] = [];
  let field = "";
  for (let i = 0; i < line.length; i++) {
    if (line[i] === "\\" && i + 1 < line.length) field += line[i++]! + line[i]!;
    else if (line[i] === ":" && fields.length < 4) {
      fields.push(field);
      field = "";
    } else field += line[i];
  }
  fields.push(field);
  return fields;
}

function unescape(field: string): string {
  return field.replace(/\\(.)/g, "$1");
}
