/** What `--version` tells. The build puts commit and date in place of the variables; from source they are not known. */

import process from "node:process";
import manifest from "../deno.json" with { type: "json" };

export const VERSION: string = manifest.version;

export function versionText(): string {
  const commit = process.env.PGPROXY_BUILD_COMMIT;
  const date = process.env.PGPROXY_BUILD_DATE;
  return commit === undefined ? `${VERSION} (from source)` : `${VERSION} (commit ${commit}, built ${date ?? "?"})`;
}
