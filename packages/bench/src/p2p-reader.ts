/**
 * How fast UCX alone reads another process's memory in whole, over what UCX_TLS says: prints the seconds of each of some reads of so
 * many bytes as JSON, and how they were read.
 */
import { join } from 'node:path'
import { openLibrary } from '@ckpt/cuda'
import type { SharedMemory } from './p2p-owner.ts'
import { PlainGets } from './plain-gets.ts'

export interface PlainReads {
  readonly seconds: readonly number[]
  /** See `P2p.transport`. */
  readonly transport: string
}

const ROUNDS = 7
/** Of the read that asks how. */
const FIRST_BYTES = 2 ** 20
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

function read(told: SharedMemory, bytes: number): PlainReads {
  const transport = transportOf(told)
  const gets = new PlainGets(told)
  // not what the owner's memory has
  const to = new Uint8Array(bytes).fill(0xff)
  const once = () => {
    const begin = performance.now()
    gets.read(to)
    return (performance.now() - begin) / 1000
  }
  once() // it connects
  if (to.some((byte) => byte !== 0)) throw new Error('the gets have not brought what is there')
  const seconds = Array.from({ length: ROUNDS }, once)
  gets.close()
  return { seconds, transport }
}

/** By one read of the library, which gives UCX its settings too. */
function transportOf({ address, key }: SharedMemory): string {
  const library = openLibrary({ kind: 'host' })
  const p2p = library.p2p.open('')
  const peer = library.p2p.connect(p2p, Uint8Array.fromHex(address))
  const remote = library.p2p.attach(peer, Uint8Array.fromHex(key))
  const memory = library.memoryAlloc(0, FIRST_BYTES)
  const stream = library.streamCreate(0)
  library.p2p.copyRemote(stream, memory, 0, remote, 0, FIRST_BYTES)
  library.streamSync(stream, 0, LIMIT_MS)
  const transport = library.p2p.transport(peer)
  library.streamDestroy(stream)
  library.memoryFree(memory)
  library.p2p.disconnect(peer)
  library.p2p.close(p2p)
  return transport
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
