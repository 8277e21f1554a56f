/**
 * A headless Chromium, driven by its own protocol (chromedevtools.github.io, "Chrome DevTools Protocol") over a WebSocket,
 * which every runtime has.
 */

import { spawn } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { Workspace } from "./server_process.ts";
import { until } from "./wait.ts";

export const CHROMIUM = "/usr/bin/chromium";

/** Why there is no browser here; undefined where there is one. */
export function browserMissing(): string | undefined {
  return existsSync(CHROMIUM) ? undefined : `${CHROMIUM} is missing: scripts/setup --servers installs it`;
}

const ARGUMENTS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--hide-scrollbars",
  "--remote-debugging-port=0",
  "--remote-allow-origins=*",
];

type Parameters = Readonly<Record<string, unknown>>;
interface Answer {
  readonly id?: number;
  readonly method?: string;
  readonly params?: { readonly [key: string]: unknown };
  readonly result?: { readonly [key: string]: unknown };
  readonly error?: { readonly message: string };
}

export class Browser {
  /** Errors on the console, uncaught ones included, and failed requests. */
  readonly complaints: string[] = [];
  /** Of everything the page asked for. */
  readonly requestedUrls: string[] = [];
  readonly #socket: WebSocket;
  readonly #pending = new Map<number, (answer: Answer) => void>();
  readonly #stop: () => Promise<void>;
  #session: string | undefined;
  #lastId = 0;

  private constructor(socket: WebSocket, stop: () => Promise<void>) {
    this.#socket = socket;
    this.#stop = stop;
    socket.addEventListener("message", ({ data }) => this.#receive(JSON.parse(String(data))));
  }

  /** With one empty page. */
  static async start(): Promise<Browser> {
    const workspace = new Workspace("browser");
    const child = spawn(CHROMIUM, [...ARGUMENTS, `--user-data-dir=${workspace.dir}/profile`, "about:blank"], {
      stdio: ["ignore", "ignore", "pipe"],
      env: { PATH: "/usr/bin:/bin", HOME: workspace.dir },
    });
    let stderr = "";
    child.stderr.on("data", (data) => stderr += String(data));
    const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
    const stop = async () => {
      child.kill("SIGKILL");
      await ended;
      await workspace.remove();
    };
    try {
      const [, url = ""] = await until(() => /listening on (ws:\S+)/.exec(stderr), {
        what: () => `Chromium to listen; it said: ${stderr.slice(-500)}`,
      });
      const socket = new WebSocket(url);
      await new Promise<void>((resolve, reject) => {
        socket.addEventListener("open", () => resolve());
        socket.addEventListener("error", () => reject(new Error("no connection to Chromium")));
      });
      const browser = new Browser(socket, stop);
      await browser.#openPage();
      return browser;
    } catch (error) {
      await stop();
      throw error;
    }
  }

  async goTo(url: string): Promise<void> {
    await this.#call("Page.navigate", { url });
  }

  /** The value of an expression in the page. */
  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await this.#call("Runtime.evaluate", { expression, returnByValue: true });
    if (exceptionDetails !== undefined) throw new Error(`${expression}: ${JSON.stringify(exceptionDetails)}`);
    return (result as { value: T }).value;
  }

  async waitFor(expression: string, timeoutMs = 45_000): Promise<void> {
    await until(() => this.evaluate<boolean>(`!!(${expression})`), {
      timeoutMs,
      intervalMs: 100,
      what: `the page to have ${expression}; complaints: ${this.complaints.join("; ")}`,
    });
  }

  async setView(width: number, height: number, scheme: "light" | "dark"): Promise<void> {
    await this.#call("Emulation.setDeviceMetricsOverride", {
      width,
      height,
      deviceScaleFactor: 1,
      mobile: width < 600,
    });
    await this.#call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  }

  /** Of the whole page, as PNG. */
  async screenshot(path?: string): Promise<Uint8Array> {
    const { data } = await this.#call("Page.captureScreenshot", { format: "png", captureBeyondViewport: true });
    const image = Buffer.from(String(data), "base64");
    if (path !== undefined) writeFileSync(path, image);
    return image;
  }

  async close(): Promise<void> {
    this.#socket.close();
    await this.#stop();
  }

  async #openPage(): Promise<void> {
    const { targetInfos } = await this.#call("Target.getTargets");
    const page = (targetInfos as { type: string; targetId: string }[]).find(({ type }) => type === "page");
    const { sessionId } = await this.#call("Target.attachToTarget", { targetId: page?.targetId, flatten: true });
    this.#session = String(sessionId);
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await this.#call(`${domain}.enable`);
  }

  #call(method: string, params: Parameters = {}): Promise<{ readonly [key: string]: unknown }> {
    const id = ++this.#lastId;
    const session = this.#session === undefined ? {} : { sessionId: this.#session };
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`Chromium did not answer ${method}`)), 30_000);
      this.#pending.set(id, ({ result, error }) => {
        clearTimeout(timer);
        if (error === undefined) resolve(result ?? {});
        else reject(new Error(`${method}: ${error.message}`));
      });
      this.#socket.send(JSON.stringify({ id, method, params, ...session }));
    });
  }

  #receive(answer: Answer): void {
    if (answer.id !== undefined) {
      this.#pending.get(answer.id)?.(answer);
      this.#pending.delete(answer.id);
      return;
    }
    const { method, params } = answer;
    const text = JSON.stringify(params);
    if (method === "Runtime.exceptionThrown") this.complaints.push(text);
    else if (method === "Runtime.consoleAPICalled" && /"type":"(error|warning|assert)"/.test(text)) {
      this.complaints.push(text);
    } else if (method === "Log.entryAdded" && /"level":"(error|warning)"/.test(text)) this.complaints.push(text);
    else if (method === "Network.loadingFailed" && !/"canceled":true/.test(text)) this.complaints.push(text);
    else if (method === "Network.requestWillBeSent") {
      this.requestedUrls.push(String((params?.request as { url: string }).url));
    }
  }
}
