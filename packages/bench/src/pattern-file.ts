import { closeSync, openSync, readSync, writeSync } from 'node:fs'

const BLOCK_BYTES = 2 ** 20

/** Writes a file whose content differs at every place and between seeds (xorshift32). `bytes`: a multiple of 4. */
export function writePattern(path: string, bytes: number, seed: number): void {
  const block = new Uint32Array(BLOCK_BYTES / 4)
  const file = openSync(path, 'w')
  let state = (seed * 2654435761) | 1
  try {
    for (let done = 0; done < bytes; done += BLOCK_BYTES) {
      for (let i = 0; i < block.length; i++) {
        state ^= state << 13
        state ^= state >>> 17
        state ^= state << 5
        block[i] = state
      }
      writeSync(file, new Uint8Array(block.buffer, 0, Math.min(BLOCK_BYTES, bytes - done)))
    }
  } finally {
    closeSync(file)
  }
}

/** SHA-256 (hex) of ranges of files, read and hashed without the native library; each range once. */
export class FileDigests {
  readonly #known = new Map<string, string>()

  sha256(path: string, offset: number, bytes: number): string {
    const key = `${offset} ${bytes} ${path}`
    const known = this.#known.get(key)
    if (known !== undefined) return known
    const digest = hashRanges(path, [{ offset, bytes }])
    this.#known.set(key, digest)
    return digest
  }
}

/** SHA-256 (hex) of ranges of a file, one behind another. */
export function hashRanges(
  path: string,
  ranges: readonly { readonly offset: number; readonly bytes: number }[],
): string {
  const hasher = new Bun.CryptoHasher('sha256')
  const longest = ranges.reduce((most, { bytes }) => Math.max(most, bytes), 0)
  const block = new Uint8Array(Math.min(BLOCK_BYTES, longest))
  const file = openSync(path, 'r')
  try {
    for (const { offset, bytes } of ranges) {
      for (let done = 0; done < bytes; ) {
        const read = readSync(file, block, 0, Math.min(block.length, bytes - done), offset + done)
        if (read === 0) throw new Error(`${path} ends before byte ${offset + bytes}`)
        hasher.update(block.subarray(0, read))
        done += read
      }
    }
  } finally {
    closeSync(file)
  }
  return hasher.digest('hex')
}

export function hex(digest: Uint8Array): string {
  return Buffer.from(digest).toString('hex')
}
