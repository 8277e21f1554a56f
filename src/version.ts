/** What `--version` tells. The build defines commit and date; from source they are not known. */

import manifest from "../deno.json" with { type: "json" };

declare const PGPROXY_BUILD_COMMIT: string | undefined;
declare const PGPROXY_BUILD_DATE: string | undefined;

export const VERSION: string = manifest.version;

export function versionText(): string {
  if (typeof PGPROXY_BUILD_COMMIT === "undefined") return `${VERSION} (from source)`;
  const date = typeof PGPROXY_BUILD_DATE === "undefined" ? "" : `, ${PGPROXY_BUILD_DATE}`;
  return `${VERSION} (commit ${PGPROXY_BUILD_COMMIT}${date})`;
}
