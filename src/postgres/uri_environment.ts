/** What connection URIs and password files speak of: hosts, and the world outside the program. */

/** A host name or address, or a folder with a Unix socket when it begins with a slash. */
export interface Host {
  readonly host: string;
  readonly port: number;
}

/** What the parser needs from outside; tests hand in their own. */
export interface UriEnvironment {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly userName: string;
  readonly homeDir: string;
  /** Undefined when the file does not exist or may not be read. */
  readTextFile(path: string): { text: string; mode: number } | undefined;
  exists(path: string): boolean;
}
