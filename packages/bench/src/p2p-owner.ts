/** Shares a buffer of so many bytes, prints what a reader needs of it as a line of JSON, and ends with its input. */
import { openLibrary } from '@ckpt/cuda'

/** What a reader is told. */
export interface SharedMemory {
  /** Hex. */
  readonly address: string
  readonly key: string
}

if (import.meta.main) await run(Number(process.argv[2]))

async function run(bytes: number): Promise<void> {
  const library = openLibrary({ kind: 'host' })
  const buffer = library.bufferAlloc(bytes, 0)
  const p2p = library.p2p.open('')
  const key = library.p2p.share(p2p, buffer).toHex()
  const told: SharedMemory = { address: library.p2p.address(p2p).toHex(), key }
  process.stdout.write(`${JSON.stringify(told)}\n`)
  await Bun.stdin.text()
  library.p2p.close(p2p)
  library.bufferFree(buffer)
  process.exit(0)
}
