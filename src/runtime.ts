/** What the program takes from the machine it runs on; handed to the parts that need it, so that tests can give their own. */

import { existsSync, readFileSync, statSync } from "node:fs";
import { homedir, userInfo } from "node:os";
import process from "node:process";
import type { UriEnvironment } from "./postgres/connection_uri.ts";

export function uriEnvironment(): UriEnvironment {
  return {
    env: process.env,
    userName: userName(),
    homeDir: homeDir(),
    readTextFile(path) {
      try {
        return { text: readFileSync(path, "utf8"), mode: statSync(path).mode };
      } catch {
        return undefined;
      }
    },
    exists: existsSync,
  };
}

/** The `deno compile` build has no permission to ask the system for it, and none for the user's name. */
function homeDir(): string {
  try {
    return homedir();
  } catch {
    return process.env.HOME ?? process.env.USERPROFILE ?? "/";
  }
}

/** A container may run under a user id without a name. */
function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return process.env.USER ?? process.env.USERNAME ?? "postgres";
  }
}

/** Whether this is Deno, whose timer of 1 ms takes more than two. */
export const IS_DENO: boolean = "deno" in process.versions;
