/** Takes the place of an upstream's module in a custom build without it; see scripts/compile.ts. */

import { PermanentError } from "../core/errors.ts";

const kind = new URL(import.meta.url).searchParams.get("kind") ?? "of that kind";

throw new PermanentError(
  `this executable was compiled without the upstream ${kind}: compile it again without --without ${kind}, ` +
    "or use a released one",
);
