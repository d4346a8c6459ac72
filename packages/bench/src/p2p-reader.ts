/**
 * How fast another process's memory is read in whole, over what UCX_TLS says: prints the seconds of each of some reads of so many
 * bytes as JSON, and how they were read.
 */
import { join } from 'node:path'
import { openLibrary } from '@ckpt/cuda'
import type { SharedMemory } from './p2p-owner.ts'

export interface PlainReads {
  readonly seconds: readonly number[]
  /** See `P2p.transport`. */
  readonly transport: string
}

const ROUNDS = 7
const LIMIT_MS = 60_000

if (import.meta.main) await run(Number(process.argv[2]))

async function run(bytes: number): Promise<void> {
  const program = join(import.meta.dir, 'p2p-owner.ts')
  const owner = Bun.spawn([process.execPath, program, String(bytes)], {
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'inherit',
  })
  try {
    const told = JSON.parse(await firstLine(owner.stdout)) as SharedMemory
    process.stdout.write(`${JSON.stringify(read(told, bytes))}\n`)
  } finally {
    owner.stdin.end()
    await owner.exited
  }
}

function read({ address, key }: SharedMemory, bytes: number): PlainReads {
  const library = openLibrary({ kind: 'host' })
  const p2p = library.p2p.open('')
  const peer = library.p2p.connect(p2p, Uint8Array.fromHex(address))
  const remote = library.p2p.attach(peer, Uint8Array.fromHex(key))
  const memory = library.memoryAlloc(0, bytes)
  const stream = library.streamCreate(0)
  const once = () => {
    const begin = performance.now()
    library.p2p.copyRemote(stream, memory, 0, remote, 0, bytes)
    library.streamSync(stream, 0, LIMIT_MS)
    return (performance.now() - begin) / 1000
  }
  once() // it connects
  const seconds = Array.from({ length: ROUNDS }, once)
  const transport = library.p2p.transport(peer)
  library.streamDestroy(stream)
  library.memoryFree(memory)
  library.p2p.disconnect(peer)
  library.p2p.close(p2p)
  return { seconds, transport }
}

async function firstLine(output: ReadableStream<Uint8Array>): Promise<string> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const chunk of output) {
    text += decoder.decode(chunk, { stream: true })
    const end = text.indexOf('\n')
    if (end >= 0) return text.slice(0, end)
  }
  throw new Error('the owner of the memory has ended')
}
