/**
 * A position in the WAL, in bytes. PostgreSQL writes it as two hexadecimal halves with a slash between (`16/B374D848`):
 * documentation, "pg_lsn Type".
 */
export type Lsn = bigint;

export const NO_LSN: Lsn = 0n;

export function formatLsn(lsn: Lsn): string {
  return formatHalves(Number(lsn >> 32n), Number(lsn & 0xffffffffn));
}

function formatHalves(high: number, low: number): string {
  return `${high.toString(16).toUpperCase()}/${low.toString(16).toUpperCase()}`;
}

/** Throws RangeError for anything but two hexadecimal numbers of up to eight digits with a slash between. */
export function parseLsn(text: string): Lsn {
  const match = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/.exec(text);
  if (match === null) throw new RangeError(`"${text}" is not an LSN`);
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`);
}

/** Reads the 64-bit big-endian LSN at `offset`. */
export function readLsn(buffer: Buffer, offset: number): Lsn {
  return (BigInt(buffer.readUInt32BE(offset)) << 32n) | BigInt(buffer.readUInt32BE(offset + 4));
}

/** The text of the LSN at `offset`, without a detour through a bigint. */
export function readLsnText(buffer: Buffer, offset: number): string {
  return formatHalves(buffer.readUInt32BE(offset), buffer.readUInt32BE(offset + 4));
}
