/**
 * Ad-hoc code signatures of Mach-O files, as the linker of macOS makes them. Bun 1.4.5 signs what it compiles for arm64;
 * for x64 it leaves the signature of its own runtime, which no longer fits (https://github.com/oven-sh/bun/pull/39837).
 *
 * The layout is that of `kern/cs_blobs.h` and `mach-o/loader.h` in Apple's xnu: commands are little endian, the
 * signature is big endian. It holds a directory with the SHA-256 of each page of all that comes before it.
 */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";

const LC_SEGMENT_64 = 0x19;
const LC_CODE_SIGNATURE = 0x1d;
const EMBEDDED_SIGNATURE = 0xfade0cc0;
const CODE_DIRECTORY = 0xfade0c02;
/** The version of the directory that has the fields of the executable segment. */
const DIRECTORY_VERSION = 0x20400;
const DIRECTORY_HEADER_BYTES = 88;
const CS_ADHOC = 0x2;
const CS_LINKER_SIGNED = 0x20000;
const EXECSEG_MAIN_BINARY = 1;
const SHA256 = 2;
const SHA256_BYTES = 32;
const PAGE_SHIFT = 12;
const PAGE_BYTES = 1 << PAGE_SHIFT;
/** Of a segment in memory: the largest page of the processors that macOS runs on. */
const SEGMENT_ALIGN = 0x4000;
const IDENTIFIER = "pg-event-proxy";

interface Commands {
  /** Where LC_CODE_SIGNATURE stands. */
  readonly signature: number;
  /** Where the segments `__LINKEDIT`, which holds the signature, and `__TEXT` stand. */
  readonly linkEdit: number;
  readonly text: number;
}

/** Why the signature does not fit the file; undefined if it fits. Throws if the file is no Mach-O file of that kind. */
export function signatureFault(file: Uint8Array): string | undefined {
  const view = viewOf(file);
  const signature = view.getUint32(commandsOf(view).signature + 8, true);
  if (view.getUint32(signature) !== EMBEDDED_SIGNATURE) return "there is no embedded signature";
  const blobs = view.getUint32(signature + 8);
  for (let i = 0; i < blobs; i++) {
    const directory = signature + view.getUint32(signature + 12 + i * 8 + 4);
    if (view.getUint32(directory) === CODE_DIRECTORY) return directoryFault(file, view, directory, signature);
  }
  return "the signature has no code directory";
}

function directoryFault(file: Uint8Array, view: DataView, directory: number, signature: number): string | undefined {
  const hashes = directory + view.getUint32(directory + 16);
  const count = view.getUint32(directory + 28);
  const limit = view.getUint32(directory + 32);
  const pageBytes = 2 ** view.getUint8(directory + 39);
  if (view.getUint8(directory + 37) !== SHA256) return "the code directory has another hash than SHA-256";
  if (limit !== signature) return `the code directory covers ${limit} of the ${signature} bytes before it`;
  if (count !== Math.ceil(limit / pageBytes)) return `the code directory has ${count} pages`;
  for (let page = 0; page < count; page++) {
    const wanted = file.subarray(hashes + page * SHA256_BYTES, hashes + (page + 1) * SHA256_BYTES);
    if (!pageHash(file, page, limit, pageBytes).equals(wanted)) return `page ${page} has another hash`;
  }
  return undefined;
}

/** The file with an ad-hoc signature in place of the one that it has. */
export function signAdHoc(file: Uint8Array): Uint8Array {
  const commands = commandsOf(viewOf(file));
  const signature = viewOf(file).getUint32(commands.signature + 8, true);
  const pages = Math.ceil(signature / PAGE_BYTES);
  const directoryBytes = DIRECTORY_HEADER_BYTES + IDENTIFIER.length + 1 + pages * SHA256_BYTES;
  const superBlobBytes = 12 + 8;
  const signatureBytes = (superBlobBytes + directoryBytes + 15) & ~15;
  const signed = Buffer.alloc(signature + signatureBytes);
  signed.set(file.subarray(0, signature));
  const view = viewOf(signed);
  // The commands are part of the first page: they must be right before it is hashed.
  view.setUint32(commands.signature + 12, signatureBytes, true);
  const linkEditBytes = signed.length - Number(view.getBigUint64(commands.linkEdit + 40, true));
  view.setBigUint64(commands.linkEdit + 48, BigInt(linkEditBytes), true);
  const inMemory = Math.ceil(linkEditBytes / SEGMENT_ALIGN) * SEGMENT_ALIGN;
  view.setBigUint64(commands.linkEdit + 32, BigInt(inMemory), true);

  view.setUint32(signature, EMBEDDED_SIGNATURE);
  view.setUint32(signature + 4, superBlobBytes + directoryBytes);
  view.setUint32(signature + 8, 1);
  view.setUint32(signature + 16, superBlobBytes);
  writeDirectory(signed, signature + superBlobBytes, { directoryBytes, limit: signature, pages, text: commands.text });
  return signed;
}

interface Directory {
  readonly directoryBytes: number;
  readonly limit: number;
  readonly pages: number;
  /** Where the segment `__TEXT` stands. */
  readonly text: number;
}

function writeDirectory(signed: Buffer, at: number, { directoryBytes, limit, pages, text }: Directory): void {
  const view = viewOf(signed);
  const hashes = DIRECTORY_HEADER_BYTES + IDENTIFIER.length + 1;
  view.setUint32(at, CODE_DIRECTORY);
  view.setUint32(at + 4, directoryBytes);
  view.setUint32(at + 8, DIRECTORY_VERSION);
  view.setUint32(at + 12, CS_ADHOC | CS_LINKER_SIGNED);
  view.setUint32(at + 16, hashes);
  view.setUint32(at + 20, DIRECTORY_HEADER_BYTES);
  view.setUint32(at + 28, pages);
  view.setUint32(at + 32, limit);
  view.setUint8(at + 36, SHA256_BYTES);
  view.setUint8(at + 37, SHA256);
  view.setUint8(at + 39, PAGE_SHIFT);
  view.setBigUint64(at + 64, view.getBigUint64(text + 40, true));
  view.setBigUint64(at + 72, view.getBigUint64(text + 48, true));
  view.setBigUint64(at + 80, BigInt(EXECSEG_MAIN_BINARY));
  signed.write(IDENTIFIER, at + DIRECTORY_HEADER_BYTES, "latin1");
  for (let page = 0; page < pages; page++) {
    signed.set(pageHash(signed, page, limit, PAGE_BYTES), at + hashes + page * SHA256_BYTES);
  }
}

function pageHash(file: Uint8Array, page: number, limit: number, pageBytes: number): Buffer {
  const bytes = file.subarray(page * pageBytes, Math.min((page + 1) * pageBytes, limit));
  return createHash("sha256").update(bytes).digest();
}

function commandsOf(view: DataView): Commands {
  const found = new Map<string, number>();
  const commands = view.getUint32(16, true);
  let at = 32;
  for (let i = 0; i < commands; i++) {
    const command = view.getUint32(at, true);
    if (command === LC_CODE_SIGNATURE) found.set("signature", at);
    if (command === LC_SEGMENT_64) found.set(segmentName(view, at), at);
    at += view.getUint32(at + 4, true);
  }
  const signature = found.get("signature");
  const linkEdit = found.get("__LINKEDIT");
  const text = found.get("__TEXT");
  if (signature === undefined || linkEdit === undefined || text === undefined) {
    throw new Error("a Mach-O file without a code signature, or without the segments __TEXT and __LINKEDIT");
  }
  return { signature, linkEdit, text };
}

function segmentName(view: DataView, command: number): string {
  const bytes = new Uint8Array(view.buffer, view.byteOffset + command + 8, 16);
  return Buffer.from(bytes).toString("latin1").replace(/\0+$/, "");
}

function viewOf(file: Uint8Array): DataView {
  return new DataView(file.buffer, file.byteOffset, file.byteLength);
}
