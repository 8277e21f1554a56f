/** A Mosquitto that lets in one user only. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Scope } from "./scenario.ts";
import { type Server, startMosquitto } from "./servers.ts";
import { programPaths, Workspace } from "./server_process.ts";

export async function mosquittoWithPassword(scope: Scope, user: string, password: string): Promise<Server> {
  const workspace = new Workspace("passwords");
  scope.defer(() => workspace.remove());
  const file = join(workspace.dir, "passwords");
  writeFileSync(file, "");
  const [tool = "mosquitto_passwd"] = programPaths("mosquitto_passwd").filter((path) =>
    spawnSync(path).error === undefined
  );
  const made = spawnSync(tool, ["-b", file, user, password], { encoding: "utf8" });
  assert.equal(made.status, 0, made.stderr);
  return scope.keep(await startMosquitto({ config: ["allow_anonymous false", `password_file ${file}`] }));
}
