import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  dtypeIndex,
  type Plan,
  pickleHandle,
  pickleList,
  pickleNone,
  pickleRuntimeError,
  tensorBytes,
  type TensorTable,
} from '@ckpt/core'
import { type Handle, type Library, ZmqContext, type ZmqMonitor, type ZmqSocket } from '@ckpt/cuda'
import { shardOf } from '../shard.ts'

/** Of the ring, and of what {@link ScriptedDaemon.hold} gives. */
export const RING_BYTES = 2 ** 20
const DELIMITER = new Uint8Array(0)
const WAIT_MS = 10_000
const NAMES_PER_LIST = 3

export interface TestTensor {
  readonly name: string
  readonly dtype: number
  readonly shape: readonly number[]
  readonly offset: number
}

/** Tensors of several dtypes and shapes one after another in a ring of 1 MiB: five lists of three. */
export function testTensors(): TestTensor[] {
  const kinds: [string, string, number[]][] = [
    ['embed', 'BF16', [64, 32]],
    ['norm', 'F32', [7]],
    ['scalar', 'I64', []],
    ['empty', 'BF16', [0, 9]],
    ['up', 'BF16', [48, 96]],
    ['down', 'F8_E4M3', [96, 48]],
    ['packed', 'F4', [16, 6]],
    ['bias', 'F16', [5]],
    ['odd', 'U8', [3, 5]],
    ['large', 'F32', [256, 200]],
    ['gate', 'BOOL', [12]],
    ['complex', 'C64', [4, 4]],
    ['head', 'BF16', [128, 64]],
    ['\u00fcml\u00e4ut', 'I16', [2, 2, 2]],
    ['__proto__', 'F64', [6]],
  ]
  let end = 0
  return kinds.map(([name, dtypeName, shape]) => {
    const dtype = dtypeIndex(dtypeName)
    const offset = Math.ceil(end / 256) * 256
    end = offset + (tensorBytes(dtype, shape) ?? 0)
    return { name, dtype, shape, offset }
  })
}

/** Plan and table that say just enough for `pickleList`. */
function planOf(tensors: readonly TestTensor[]): { plan: Plan; table: TensorTable } {
  const buckets = Math.ceil(tensors.length / NAMES_PER_LIST)
  const first = Array.from({ length: buckets + 1 }, (_, i) =>
    Math.min(tensors.length, i * NAMES_PER_LIST),
  )
  const plan = {
    bucketCount: buckets,
    bucketFirstTensor: Uint32Array.from(first),
    order: Uint32Array.from(tensors.keys()),
    tensorRing: Float64Array.from(tensors, (tensor) => tensor.offset),
  }
  const table = {
    names: tensors.map((tensor) => tensor.name),
    dtypes: Uint8Array.from(tensors, (tensor) => tensor.dtype),
    shapes: tensors.map((tensor) => tensor.shape),
  }
  return { plan: plan as unknown as Plan, table: table as unknown as TensorTable }
}

/** Pseudo-random bytes, the same for the same seed. */
export function testBytes(seed: number, bytes: number): Uint8Array {
  let state = seed >>> 0 || 1
  return new Uint8Array(bytes).map(() => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state >>> 24
  })
}

/** One socket of the daemon, stepped by the test. */
export class DaemonSide {
  readonly address: string
  readonly #socket: ZmqSocket
  readonly #monitor: ZmqMonitor
  readonly #seen: string[] = []

  constructor(context: ZmqContext, address: string) {
    this.address = address
    this.#socket = context.socket('DEALER')
    this.#monitor = this.#socket.monitor()
    this.#socket.bind(address)
  }

  async send(body: Uint8Array): Promise<void> {
    const endMs = performance.now() + WAIT_MS
    while (!this.#socket.send([DELIMITER, body])) {
      if (performance.now() > endMs) throw new Error('nobody takes the message')
      await Bun.sleep(1)
    }
  }

  /** The body of the next reply. */
  async reply(timeoutMs = WAIT_MS): Promise<Uint8Array> {
    const body = await this.replyWithin(timeoutMs)
    if (body === null) throw new Error('no reply')
    return body
  }

  async replyWithin(timeoutMs: number): Promise<Uint8Array | null> {
    const endMs = performance.now() + timeoutMs
    while (performance.now() < endMs) {
      const frames = this.#socket.recv()
      if (frames?.length === 2) return frames[1] as Uint8Array
      if (frames !== null) throw new Error(`a reply of ${frames.length} frames`)
      await Bun.sleep(1)
    }
    return null
  }

  /** Whether the monitor has told this event, now or within the time. */
  async saw(event: 'connected' | 'disconnected', timeoutMs: number): Promise<boolean> {
    const endMs = performance.now() + timeoutMs
    do {
      for (let next = this.#monitor.next(); next !== null; next = this.#monitor.next()) {
        this.#seen.push(next.event)
      }
      if (this.#seen.includes(event)) return true
      await Bun.sleep(1)
    } while (performance.now() < endMs)
    return false
  }

  close(): void {
    this.#monitor.close()
    this.#socket.close()
  }
}

/** A daemon for tests of the engine: one ring, one socket per rank, the messages one by one. */
export class ScriptedDaemon {
  readonly tensors = testTensors()
  readonly lists: readonly Uint8Array[]
  readonly handle: Uint8Array
  readonly #library: Library
  readonly #context = new ZmqContext()
  readonly #dir = mkdtempSync(join(tmpdir(), 'ckpt-engine-test-'))
  readonly #ring: number
  readonly #refcounter: number
  readonly #stream: number
  readonly #open: DaemonSide[] = []
  #content: Uint8Array = new Uint8Array(0)

  constructor(library: Library) {
    this.#library = library
    this.#ring = library.memoryAlloc(0, RING_BYTES)
    this.#stream = library.streamCreate(0)
    const { refcounter, name } = library.refcounterCreate()
    this.#refcounter = refcounter
    const handle = library.memoryExport(this.#ring)
    this.handle = pickleHandle({ handle, bytes: RING_BYTES, refcounter: name })
    const { plan, table } = planOf(this.tensors)
    this.lists = Array.from({ length: plan.bucketCount }, (_, g) => pickleList(plan, table, g))
  }

  /** Fills the ring with the bytes of a seed. */
  async fill(seed: number): Promise<void> {
    const buffer = await this.hold(seed)
    this.#library.copyH2d(this.#stream, this.#ring, 0, buffer, 0, RING_BYTES)
    this.#library.streamSync(this.#stream, 0, WAIT_MS)
    this.#library.bufferFree(buffer)
  }

  /** The bytes of a seed in host memory, read from a file; the caller frees it. They are what is {@link expected} from now on. */
  async hold(seed: number): Promise<Handle> {
    this.#content = testBytes(seed, RING_BYTES)
    const path = join(this.#dir, 'content')
    await Bun.write(path, this.#content)
    const file = this.#library.fileOpen(path)
    const buffer = this.#library.bufferAlloc(RING_BYTES, 0)
    const piece = { file, buffer, fileOffset: 0, bufferOffset: 0, bytes: RING_BYTES }
    const read = this.#library.readStart([piece], 1, 0)
    this.#library.readWait(read, 0, WAIT_MS)
    this.#library.readDestroy(read)
    this.#library.fileClose(file)
    return buffer
  }

  /** Overwrites what list `g` pointed to: after its reply the engine may not need it any more. */
  overwrite(g: number): void {
    for (const { dtype, shape, offset } of this.tensors.slice(g * 3, g * 3 + NAMES_PER_LIST)) {
      const bytes = tensorBytes(dtype, shape) ?? 0
      if (bytes > 0) this.#library.memoryFill(this.#ring, offset, bytes, 0xee)
    }
  }

  side(name: string): DaemonSide {
    const side = new DaemonSide(this.#context, `ipc://${join(this.#dir, name)}`)
    this.#open.push(side)
    return side
  }

  /** What rank `rank` of `size` must hold of the last content. */
  expected(
    rank: number,
    size: number,
  ): Record<string, { shape: readonly number[]; sha256: string }> {
    const held = Object.create(null)
    for (const { name, dtype, shape, offset } of this.tensors) {
      const shard = shardOf({ name, dtype, shape }, { by: 'rows', rank, size })
      if (shard === null) throw new Error(name)
      const from = offset + shard.offset
      const part = this.#content.subarray(from, from + shard.bytes)
      const sha256 = createHash('sha256').update(part).digest('hex')
      held[name] = { shape: shard.shape, sha256 }
    }
    return held
  }

  close(): void {
    for (const side of this.#open) side.close()
    this.#context.close()
    this.#library.memoryFree(this.#ring)
    this.#library.streamDestroy(this.#stream)
    this.#library.refcounterDestroy(this.#refcounter)
    rmSync(this.#dir, { recursive: true, force: true })
  }
}

export const NONE = pickleNone()
export const X = pickleRuntimeError('aborted by the test')
