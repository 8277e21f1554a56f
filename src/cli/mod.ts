/** The command line: which words run which command, and how each kind of error ends the program. */

import { readFileSync } from "node:fs";
import process from "node:process";
import { Argument, Command, CommanderError } from "commander";
import { ConfigError, errorText, OperatorError } from "../core/errors.ts";
import { versionText } from "../version.ts";
import { completionScript, type Shell, SHELLS } from "./completion.ts";
import { manualPage } from "./manual.ts";

/** Exit codes: 0 done, 1 could not run, 2 faulty configuration or command line. */
const EXIT_FAILED = 1;
const EXIT_USAGE = 2;

/** Runs the command that `args` name and exits the process. */
export async function runCommandLine(args: readonly string[]): Promise<void> {
  const program = makeProgram();
  try {
    await program.parseAsync([...args], { from: "user" });
  } catch (error) {
    process.exit(report(error));
  }
}

function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
  if (error instanceof ConfigError) {
    for (const problem of error.problems) process.stderr.write(`pg-event-proxy: ${problem}\n`);
    return EXIT_USAGE;
  }
  process.stderr.write(`pg-event-proxy: ${errorText(error)}\n`);
  if (!(error instanceof OperatorError) && error instanceof Error && process.env.PGPROXY_TEST_STACK !== undefined) {
    process.stderr.write(`${error.stack}\n`);
  }
  return EXIT_FAILED;
}

/** Exits when what was written to standard output has gone into its pipe. */
async function exit(code: number): Promise<never> {
  await new Promise<void>((resolve) => process.stdout.write("", () => resolve()));
  process.exit(code);
}

interface FileOption {
  readonly config?: string;
}

interface SqlOptions extends FileOption {
  readonly install?: boolean;
  readonly role?: string;
}

interface CheckCliOptions extends FileOption {
  readonly json?: boolean;
  readonly send?: boolean;
  readonly key?: string;
}

interface TailCliOptions {
  readonly channel?: readonly string[];
  readonly wal?: boolean;
  readonly table?: readonly string[];
}

function collect(value: string, values: readonly string[] = []): readonly string[] {
  return [...values, value];
}

const CONFIG_FILE = "configuration file; variables PGPROXY_… win over it";

function makeProgram(): Command {
  const program = new Command("pg-event-proxy")
    .description("Carries PostgreSQL NOTIFY messages and row changes to RabbitMQ, MQTT brokers, Redis and stdout.")
    .version(versionText())
    .exitOverride()
    .enablePositionalOptions()
    .configureHelp({ formatHelp: manualPage })
    .showHelpAfterError("(pg-event-proxy --help tells the commands)");

  program.command("run", { isDefault: true })
    .description("run the proxy (the default)")
    .argument("[config.ini]", CONFIG_FILE)
    .option("-c, --config <file>", CONFIG_FILE)
    .action(async (file: string | undefined, options: FileOption) => {
      const { runCommand } = await import("./run.ts");
      process.exit(await runCommand(source(file, options)));
    });

  program.command("config")
    .description("print the effective configuration and where each value came from")
    .argument("[config.ini]", CONFIG_FILE)
    .option("-c, --config <file>", CONFIG_FILE)
    .option("--example", "print a commented example of an ini file instead")
    .action(async (file: string | undefined, options: FileOption & { readonly example?: boolean }) => {
      const { configCommand } = await import("./config.ts");
      configCommand({
        ...source(file, options),
        ...(options.example === undefined ? {} : { example: options.example }),
        write: (text) => process.stdout.write(text),
      });
    });

  program.command("sql")
    .description("print the SQL of the events schema (send_message, on_row_change), or install it")
    .argument("[config.ini]", CONFIG_FILE)
    .option("-c, --config <file>", CONFIG_FILE)
    .option("--install", "run it on each configured database, and say what that changed")
    .option("--role <name>", "let a proxy that logs in as this role, and is not the owner, deliver durable messages")
    .action(async (file: string | undefined, options: SqlOptions) => {
      const { sqlCommand } = await import("./sql.ts");
      await sqlCommand({
        ...source(file, options),
        ...(options.install === undefined ? {} : { install: options.install }),
        ...(options.role === undefined ? {} : { role: options.role }),
        write: (text) => process.stdout.write(text),
      });
    });

  program.command("check")
    .description("go through everything that a run needs, and tell what is missing and how to mend it")
    .argument("[config.ini]", CONFIG_FILE)
    .option("-c, --config <file>", CONFIG_FILE)
    .option("--json", "print one JSON document")
    .option("--send", "publish one message to each target, which its consumers see")
    .option("--key <key>", "the routing key of that message for channels; default: none")
    .action(async (file: string | undefined, options: CheckCliOptions) => {
      const { checkCommand } = await import("./check.ts");
      const { json = false, send = false, key = "" } = options;
      await exit(
        await checkCommand({
          ...source(file, options),
          json,
          send,
          key,
          write: (text) => process.stdout.write(text),
        }),
      );
    });

  program.command("tail")
    .description("watch events live, with no broker and no lasting slot: in colours, or as JSON lines in a pipe")
    .argument("<uri>", "the database: postgresql://user@host/database")
    .option("--channel <name>", "notifications of this channel; may be given several times", collect)
    .option("--wal", "row changes of all tables; the default where no channel is named")
    .option("--table <name>", "row changes of this table only; may be given several times", collect)
    .action(async (uri: string, { channel = [], wal = false, table = [] }: TailCliOptions) => {
      const { tailCommand } = await import("./tail.ts");
      await exit(await tailCommand({ uri, channels: channel, wal, tables: table }));
    });

  program.command("completion")
    .description("print a script that completes the command line in a shell")
    .addArgument(new Argument("<shell>", "bash, zsh or fish").choices(SHELLS))
    .action((shell: Shell) => void process.stdout.write(completionScript(program, shell)));

  program.command("health")
    .description("ask a running instance whether it lives; exit code 0 or 1, as container health checks want it")
    .argument("[url]", "default: /health/live at listen of [http], otherwise at port 8080 of this machine")
    .option("-c, --config <file>", "where listen is set, unless a variable sets it")
    .action(async (url: string | undefined, options: FileOption) => {
      const { healthCommand } = await import("./health.ts");
      await healthCommand({ url, ...source(undefined, options), write: (text) => process.stdout.write(text) });
    });

  return program;
}

function source(file: string | undefined, options: FileOption) {
  if (file !== undefined && options.config !== undefined && file !== options.config) {
    throw new ConfigError([`two configuration files are named, "${file}" and "${options.config}": name one`]);
  }
  return {
    file: file ?? options.config,
    env: process.env,
    readFile: (path: string) => readFileSync(path, "utf8"),
  };
}
