/** The container image, built from the Dockerfile and run by buildah, without a registry and without a daemon. */

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { type Proxy, ROOT_DIR } from "./proxy.ts";
import { type Scope, uniqueName } from "./scenario.ts";
import { Workspace } from "./server_process.ts";

export interface ImageConfig {
  readonly User?: string;
  readonly Entrypoint?: readonly string[];
  readonly StopSignal?: string;
  readonly Env?: readonly string[];
  readonly Labels?: Readonly<Record<string, string>>;
  readonly Healthcheck?: { readonly Test?: readonly string[] };
}

/** Why there can be no image here; undefined if there can. */
export function noImageBecause(): string | undefined {
  if (process.platform !== "linux" || process.getuid?.() !== 0) return "building an image needs Linux and root";
  for (const program of ["buildah", "unshare"]) {
    if (spawnSync(program, ["--version"]).status !== 0) {
      return `${program} is missing here: scripts/setup --containers installs it where there is apt`;
    }
  }
  return undefined;
}

/** One image and one container of it; its storage is a temporary folder that goes with the scope. */
export class Image {
  readonly #workspace: Workspace;
  readonly #storage: readonly string[];
  #container: string | undefined;

  private constructor(workspace: Workspace) {
    this.#workspace = workspace;
    const { dir } = workspace;
    this.#storage = ["--root", join(dir, "storage"), "--runroot", join(dir, "run"), "--storage-driver", "vfs"];
  }

  /** Builds the Dockerfile's last stage of that executable: the first stage, which compiles it, needs a base image. */
  static build(scope: Scope, executable: string): Image {
    const workspace = new Workspace("image");
    scope.defer(() => workspace.remove());
    const image = new Image(workspace);
    const stage = join(workspace.dir, "stage");
    const context = join(workspace.dir, "context");
    mkdirSync(context);
    run(join(ROOT_DIR, "scripts/image_root"), [executable, join(stage, "image")]);
    image.#buildah([
      "build",
      "--isolation=chroot",
      // The format of OCI has no place for a health check.
      "--format=docker",
      "--pull-never",
      `--build-context=build=${stage}`,
      "--build-arg=VERSION=1.2.3",
      "--tag=pg-event-proxy",
      `--file=${join(ROOT_DIR, "Dockerfile")}`,
      context,
    ]);
    return image;
  }

  get config(): ImageConfig {
    const { Docker } = JSON.parse(this.#buildah(["inspect", "--type=image", "pg-event-proxy"]));
    return Docker.config;
  }

  /** As a registry would say it: of its layers, not compressed. */
  get bytes(): number {
    const { Manifest } = JSON.parse(this.#buildah(["inspect", "--type=image", "pg-event-proxy"]));
    const { layers }: { layers: ReadonlyArray<{ size: number }> } = JSON.parse(Manifest);
    return layers.reduce((sum, { size }) => sum + size, 0);
  }

  /** The paths of all files in it, as it was built. */
  files(): string[] {
    const root = this.#mount();
    return filesUnder(root).map((path) => path.slice(root.length)).sort();
  }

  /** Starts its entry point on a read-only root. */
  start(scope: Scope, env: Readonly<Record<string, string>>): Proxy {
    const root = this.#mount();
    const { Entrypoint = [] } = this.config;
    // What buildah puts into every container has to be there, since it cannot be made any more. This buildah cannot
    // clear up on a read-only root either and ends with an error of its own, whatever the program ends with.
    this.#buildah(["run", "--isolation=chroot", this.#from(), "--", ...Entrypoint, "--version"]);
    writeFileSync(join(root, "run/.containerenv"), "");
    const script = join(this.#workspace.dir, "start");
    writeFileSync(script, START_SCRIPT);
    const variables = Object.entries(env).map(([name, value]) => `--env=${name}=${value}`);
    return scope.proxy({
      // Processes of its own, that end with the first of them, and mounts that nobody else sees.
      command: ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", script, root],
      args: [
        "buildah",
        ...this.#storage,
        "run",
        "--isolation=chroot",
        ...variables,
        this.#from(),
        "--",
        ...Entrypoint,
      ],
    });
  }

  #from(): string {
    this.#container ??= this.#buildah(["from", "--pull-never", `--name=${uniqueName("container")}`, "pg-event-proxy"])
      .trim();
    return this.#container;
  }

  #mount(): string {
    return this.#buildah(["mount", this.#from()]).trim();
  }

  #buildah(args: readonly string[]): string {
    return run("buildah", [...this.#storage, ...args]);
  }
}

const START_SCRIPT = `
root=$1
shift
mount --bind "$root" "$root" && mount -o remount,ro,bind "$root" || exit
exec "$@"
`;

/** The process of the program in the container that `proxy` runs: neither unshare nor buildah. */
export function programIn(proxy: Proxy): number {
  const found = descendants(proxy.pid).find((pid) => commandLine(pid).startsWith("/pg-event-proxy\0"));
  if (found === undefined) throw new Error("the program does not run in the container");
  return found;
}

function descendants(pid: number): number[] {
  const children = readdirSync(`/proc/${pid}/task`).flatMap((thread) => {
    return textOf(`/proc/${pid}/task/${thread}/children`).split(" ").filter((child) => child !== "").map(Number);
  });
  return children.flatMap((child) => existsSync(`/proc/${child}/task`) ? [child, ...descendants(child)] : []);
}

function commandLine(pid: number): string {
  return textOf(`/proc/${pid}/cmdline`);
}

/** Of a process that may have ended meanwhile. */
function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function filesUnder(dir: string): string[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    const path = join(dir, entry.name);
    return entry.isDirectory() ? filesUnder(path) : [path];
  });
}

function run(command: string, args: readonly string[]): string {
  const { status, error, stdout, stderr } = spawnSync(command, args, { encoding: "utf8", timeout: 120_000 });
  if (error !== undefined) throw new Error(`${command} could not be run: ${error.message}`);
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${status}:\n${stdout}${stderr}`);
  return stdout;
}
