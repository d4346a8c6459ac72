/** What the registry's tests share: a safetensors writer, a registry with cleanup, and a check of held bytes. */
import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CkptError, type ErrorCode } from '@ckpt/core'
import { type Library, openLibrary, type RankInfo } from '@ckpt/cuda'
import { createRegistry } from '../held.ts'
import type { Registry } from '../registry.ts'
import type { DaemonOptions, HeldVersion } from '../../types.ts'

export interface TestTensor {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly bytes: Uint8Array
}

export type TestTensors = Record<string, TestTensor>

/** Of all of them. */
export function bytesOf(tensors: TestTensors): number {
  return Object.values(tensors).reduce((sum, { bytes }) => sum + bytes.length, 0)
}

/** Bytes that differ between seeds and between positions. */
export function pattern(bytes: number, seed: number): Uint8Array {
  const out = new Uint8Array(bytes)
  let state = (seed * 2654435761 + 1) >>> 0
  for (let i = 0; i < bytes; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    out[i] = state >>> 24
  }
  return out
}

export function u8(bytes: number, seed: number): TestTensor {
  return { dtype: 'U8', shape: [bytes], bytes: pattern(bytes, seed) }
}

/** A safetensors file of these tensors, in this order. */
export function safetensors(tensors: TestTensors): Uint8Array {
  const header: Record<string, unknown> = {}
  let end = 0
  for (const [name, { dtype, shape, bytes }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.length] }
    end += bytes.length
  }
  return rawSafetensors(
    JSON.stringify(header),
    Buffer.concat(Object.values(tensors).map(({ bytes }) => bytes)),
  )
}

export function rawSafetensors(json: string, content: Uint8Array = new Uint8Array()): Uint8Array {
  const text = new TextEncoder().encode(json)
  const prefix = new Uint8Array(8)
  new DataView(prefix.buffer).setBigUint64(0, BigInt(text.length), true)
  return Buffer.concat([prefix, text, content])
}

export class TestDir {
  readonly path: string

  constructor(parent: string = tmpdir()) {
    this.path = mkdtempSync(join(parent, 'ckpt-registry-'))
  }

  write(name: string, content: Uint8Array | string): string {
    const path = join(this.path, name)
    writeFileSync(path, content)
    return path
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}

export const LIBRARY = { kind: 'host', hostDevices: 2 } as const
/** Of the memory Worker. */
export const MEMORY_START = {
  library: LIBRARY,
  budgetBytes: 2 ** 30,
  rankNodes: [],
  networkDevices: [],
  allowedDirs: null,
}

export function daemonOptions(
  stateDir: string,
  options: Partial<DaemonOptions> = {},
): DaemonOptions {
  const ranks = [0, 1].map(
    (rank): RankInfo => ({
      rank,
      device: rank,
      deviceName: 'host',
      key: `GPU-${rank}`,
      uuid: `GPU-${rank}`,
      numaNode: -1,
    }),
  )
  return {
    library: LIBRARY,
    ranks,
    allowedDirs: null,
    allowedEngines: null,
    hostMemoryBytes: 2 ** 30,
    evict: false,
    inPlace: 'never',
    stateDir,
    ringBytes: null,
    bucketBytes: null,
    memoryFraction: 0.9,
    spin: 'auto',
    broadcast: 'copies',
    idleCommunicatorMs: 600_000,
    ...options,
  }
}

/** Runs with a registry and a directory, and checks that closing leaves nothing of the library behind. */
export async function withRegistry(
  run: (registry: Registry, dir: TestDir, library: Library) => Promise<void>,
  options: Partial<DaemonOptions> = {},
  parent?: string,
): Promise<void> {
  const dir = new TestDir(parent)
  const library = openLibrary(LIBRARY)
  const before = library.liveObjects()
  const registry = await createRegistry(daemonOptions(dir.path, options))
  try {
    await run(registry, dir, library)
  } finally {
    await registry.close()
    dir.remove()
  }
  const left = library.liveObjects() - before
  if (left !== 0) throw new Error(`${left} native objects are left`)
}

/** Throws unless the version holds exactly these tensors, byte for byte. */
export function requireHeld(library: Library, version: HeldVersion, expected: TestTensors): void {
  const { names } = version.table
  const missing = Object.keys(expected).filter((name) => !names.includes(name))
  if (missing.length > 0 || names.length !== Object.keys(expected).length) {
    throw new Error(`tensors ${names.join(', ')} are held`)
  }
  for (const [row, name] of names.entries()) requireTensor(library, version, row, expected[name]!)
}

function requireTensor(
  library: Library,
  version: HeldVersion,
  row: number,
  { bytes }: TestTensor,
): void {
  const { table } = version
  const name = table.names[row]
  if (table.bytes[row] !== bytes.length) throw new Error(`${name} has ${table.bytes[row]} bytes`)
  const owner = table.owners[row]!
  const { starts, bytes: sizes } = version.sources[owner]!
  for (let done = 0; done < bytes.length; ) {
    const at = table.offsets[row]! + done
    const index = starts.findLastIndex((start) => start <= at)
    const count = Math.min(bytes.length - done, starts[index]! + sizes[index]! - at)
    if (!(count > 0)) throw new Error(`${name} is beyond the source space at ${at}`)
    const held = library.bufferSha256(version.buffers[owner]![index]!, at - starts[index]!, count)
    const wanted = createHash('sha256')
      .update(bytes.subarray(done, done + count))
      .digest()
    if (!wanted.equals(held)) throw new Error(`${name} differs in [${done}, ${done + count})`)
    done += count
  }
}

/** The failure of a call that must fail with this code; its message must contain every one of `words`. */
export async function failure(
  call: () => unknown,
  code: ErrorCode,
  ...words: string[]
): Promise<CkptError> {
  let error: unknown
  try {
    await call()
  } catch (thrown) {
    error = thrown
  }
  if (!(error instanceof CkptError)) throw new Error(`no CkptError: ${error}`)
  if (error.code !== code) throw new Error(`${error.code}: ${error.message}`)
  for (const word of words) {
    if (!error.message.includes(word)) throw new Error(`'${word}' is not in '${error.message}'`)
  }
  return error
}

/** Descriptors of files under `dir` that this process has open. */
export function openFiles(dir: string): number {
  return readdirSync('/proc/self/fd').filter((descriptor) => {
    try {
      return readlinkSync(`/proc/self/fd/${descriptor}`).startsWith(dir)
    } catch {
      return false // the descriptor of the listing itself
    }
  }).length
}
