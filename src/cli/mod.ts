/** The command line: which words run which command, and how each kind of error ends the program. */

import { readFileSync } from "node:fs";
import process from "node:process";
import { Command, CommanderError } from "commander";
import { keyHelp } from "../config/example.ts";
import { ConfigError, errorText, OperatorError } from "../core/errors.ts";
import { versionText } from "../version.ts";

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

interface FileOption {
  readonly config?: string;
}

interface SqlOptions extends FileOption {
  readonly install?: boolean;
  readonly role?: string;
}

function makeProgram(): Command {
  const program = new Command("pg-event-proxy")
    .description("Carries PostgreSQL NOTIFY messages and row changes to RabbitMQ, MQTT brokers, Redis and stdout.")
    .version(versionText())
    .exitOverride()
    .enablePositionalOptions()
    .showHelpAfterError("(pg-event-proxy --help tells the commands)");

  program.command("run", { isDefault: true })
    .description("run the proxy (the default)")
    .argument("[config.ini]", "configuration file; variables PGPROXY_… win over it")
    .option("-c, --config <file>", "the same")
    .addHelpText("after", () => `\n${keyHelp()}`)
    .action(async (file: string | undefined, options: FileOption) => {
      const { runCommand } = await import("./run.ts");
      process.exit(await runCommand(source(file, options)));
    });

  program.command("config")
    .description("print the effective configuration and where each value came from")
    .argument("[config.ini]")
    .option("-c, --config <file>", "the same")
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
    .argument("[config.ini]")
    .option("-c, --config <file>", "the same")
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

  program.command("health")
    .description("ask a running instance whether it lives; exit code 0 or 1, as container health checks want it")
    .argument("[url]", "default: /health/live at port 8080 of this machine")
    .action(async (url: string | undefined) => {
      const { healthCommand } = await import("./health.ts");
      await healthCommand({ url, write: (text) => process.stdout.write(text) });
    });

  program.addHelpText(
    "after",
    `
Examples:
  pg-event-proxy config --example > config.ini   write a commented configuration to start from
  pg-event-proxy config.ini                      run with it
  pg-event-proxy config config.ini               see what would be used, and where it comes from
  pg-event-proxy sql --install config.ini        install events.send_message and events.on_row_change
  pg-event-proxy run --help                      list every key`,
  );
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
