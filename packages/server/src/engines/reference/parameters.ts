import { CkptError } from '@ckpt/core/api/errors'
import { DTYPES, itemBytes, tensorBytes } from '@ckpt/core/safetensors/dtypes'
import type { CopyPiece, Handle, Library } from '@ckpt/cuda'
import type { HeldTensor } from './messages.ts'
import { type Shard, type Sharding, shardOf } from './shard.ts'

/** One entry of a tensor list. */
export interface ListedTensor {
  readonly name: string
  /** Index into DTYPES. */
  readonly dtype: number
  readonly shape: readonly number[]
  /** Byte offset in the ring. */
  readonly offset: number
}

/** Where a tensor's part lies that this rank holds. */
export interface Place {
  readonly name: string
  /** Index into DTYPES. */
  readonly dtype: number
  /** Of the whole tensor. */
  readonly shape: readonly number[]
  readonly shard: Shard
  /** Index into the allocations. */
  readonly allocation: number
  /** Byte offset in the allocation. */
  readonly destination: number
}

interface Slot {
  readonly dtype: number
  /** Of the whole tensor. */
  readonly shape: readonly number[]
  readonly shard: Shard
  readonly chunk: Chunk
  readonly offset: number
}

interface Chunk {
  memory: Handle
  readonly bytes: number
  used: number
}

interface Hole {
  readonly chunk: Chunk
  readonly offset: number
  readonly bytes: number
}

const ALIGNMENT = 256
const CHUNK_LEAST_BYTES = 64 * 2 ** 20
const CHUNK_MOST_BYTES = 2 ** 30

type Part = Pick<Slot, 'dtype' | 'shape' | 'shard'>

/** How a shape is split goes by the shape alone. */
function isSame(held: Part, part: Part): boolean {
  const { dtype, shape } = part
  return (
    held.dtype === dtype &&
    held.shape.length === shape.length &&
    held.shape.every((size, dimension) => size === shape[dimension])
  )
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
}

/**
 * The parameters of one rank in device memory. They are learned from the tensor lists and lie in few allocations: each new one
 * is as large as all before it together (64 MiB to 1 GiB), or as what a list needs if that is more.
 */
export class Parameters {
  readonly #library: Library
  readonly #device: number
  readonly #sharding: Sharding
  readonly #stream: Handle
  readonly #slots = new Map<string, Slot>()
  readonly #chunks: Chunk[] = []
  #holes: Hole[] = []
  #listed = new Set<string>()
  #updated: ReadonlySet<string> = new Set()
  #changes = 0

  constructor(library: Library, device: number, sharding: Sharding) {
    this.#library = library
    this.#device = device
    this.#sharding = sharding
    this.#stream = library.streamCreate(device)
  }

  /** Names of the tensors of the last whole update; there may be more that it did not have. */
  get updatedNames(): ReadonlySet<string> {
    return this.#updated
  }

  /** Another one when a tensor or an allocation has come, lies elsewhere or is another, or the last whole update had others. */
  get changes(): number {
    return this.#changes
  }

  beginUpdate(): void {
    this.#listed = new Set()
  }

  /** All lists since {@link beginUpdate} together are a checkpoint. */
  endUpdate(): void {
    const [before, now] = [this.#updated, this.#listed]
    if (before.size !== now.size || !now.isSubsetOf(before)) this.#changes++
    this.#updated = now
    this.#listed = new Set()
  }

  /**
   * Copies this rank's part of each listed tensor out of the ring and waits for the copies. Throws `engine_protocol` when an
   * entry does not lie in the ring, and what the device says.
   */
  load(
    list: readonly ListedTensor[],
    ring: { readonly memory: Handle; readonly bytes: number },
    signal: Handle,
    timeoutMs: number,
  ): void {
    this.#reserve(list)
    const piecesOf = new Map<Chunk, CopyPiece[]>()
    for (const tensor of list) {
      const shard = this.#checkedShard(tensor, ring.bytes)
      const slot = this.#slotFor(tensor, shard)
      this.#listed.add(tensor.name)
      if (shard.bytes === 0) continue
      const pieces = piecesOf.get(slot.chunk) ?? []
      piecesOf.set(slot.chunk, pieces)
      const { offset, width, pitch, height } = shard
      for (let row = 0; row < height; row++) {
        pieces.push({
          dstOffset: slot.offset + row * width,
          srcOffset: tensor.offset + offset + row * pitch,
          bytes: width,
        })
      }
    }
    for (const [chunk, pieces] of piecesOf) {
      this.#library.copyDevice(this.#stream, chunk.memory, ring.memory, pieces)
    }
    this.#library.streamSync(this.#stream, signal, timeoutMs)
  }

  #checkedShard(tensor: ListedTensor, ringBytes: number) {
    const bytes = tensorBytes(tensor.dtype, tensor.shape)
    const shard = shardOf(tensor, this.#sharding)
    const inRing =
      bytes !== null && Number.isSafeInteger(tensor.offset) && tensor.offset >= 0
        ? tensor.offset + bytes <= ringBytes
        : false
    if (shard === null || !inRing) {
      throw new CkptError('engine_protocol', `${tensor.name} does not lie in the ring`)
    }
    // torch: "self.storage_offset() must be divisible by" the item size, in Tensor.view(dtype)
    if (tensor.offset % itemBytes(tensor.dtype) !== 0) {
      throw new CkptError('engine_protocol', `${tensor.name} is not aligned to its item size`)
    }
    return shard
  }

  /** Makes sure that what the list needs beyond the present slots fits into one allocation. */
  #reserve(list: readonly ListedTensor[]): void {
    let needed = 0
    for (const tensor of list) {
      const shard = shardOf(tensor, this.#sharding)
      if (shard === null || this.#slots.get(tensor.name)?.shard.bytes === shard.bytes) continue
      needed += aligned(shard.bytes)
    }
    const last = this.#chunks.at(-1)
    if (needed === 0 || (last !== undefined && last.used + needed <= last.bytes)) return
    const total = this.#chunks.reduce((sum, chunk) => sum + chunk.bytes, 0)
    const growth = Math.min(CHUNK_MOST_BYTES, Math.max(CHUNK_LEAST_BYTES, total))
    const bytes = Math.max(growth, needed)
    const memory = this.#library.memoryAlloc(this.#device, bytes)
    this.#chunks.push({ memory, bytes, used: 0 })
    this.#changes++
  }

  #slotFor({ name, dtype, shape }: ListedTensor, shard: Shard): Slot {
    const held = this.#slots.get(name)
    const part = { dtype, shape, shard }
    const { bytes } = shard
    if (held !== undefined && isSame(held, part)) return held
    this.#changes++
    if (held !== undefined && held.shard.bytes === bytes) {
      const slot = { ...held, ...part }
      this.#slots.set(name, slot)
      return slot
    }
    if (held !== undefined && held.shard.bytes > 0) {
      this.#holes.push({ chunk: held.chunk, offset: held.offset, bytes: aligned(held.shard.bytes) })
    }
    const { chunk, offset } = this.#place(aligned(bytes))
    const slot = { ...part, chunk, offset }
    this.#slots.set(name, slot)
    return slot
  }

  /** First fit in what was given up by tensors whose size has changed, else the end of the last allocation. */
  #place(bytes: number): { chunk: Chunk; offset: number } {
    const hole = bytes === 0 ? undefined : this.#holes.find((one) => one.bytes >= bytes)
    if (hole !== undefined) {
      this.#holes = this.#holes.filter((one) => one !== hole)
      const rest = { chunk: hole.chunk, offset: hole.offset + bytes, bytes: hole.bytes - bytes }
      if (rest.bytes > 0) this.#holes.push(rest)
      return { chunk: hole.chunk, offset: hole.offset }
    }
    const chunk = this.#chunks.at(-1) ?? this.#emptyChunk()
    const offset = chunk.used
    chunk.used += bytes
    if (chunk.used > chunk.bytes) throw new Error('the list was not reserved for')
    return { chunk, offset }
  }

  #emptyChunk(): Chunk {
    const memory = this.#library.memoryAlloc(this.#device, CHUNK_LEAST_BYTES)
    const chunk = { memory, bytes: CHUNK_LEAST_BYTES, used: 0 }
    this.#chunks.push(chunk)
    this.#changes++
    return chunk
  }

  /** What is held, with the SHA-256 of each tensor. Blocks. */
  hash(): Record<string, HeldTensor> {
    // Names come from the wire, and `__proto__` is a legal one.
    const tensors: Record<string, HeldTensor> = Object.create(null)
    for (const [name, { dtype, shard, chunk, offset }] of this.#slots) {
      const { shape, bytes } = shard
      const digest =
        bytes === 0
          ? new Bun.CryptoHasher('sha256').digest()
          : this.#library.memorySha256(chunk.memory, offset, bytes)
      const sha256 = Buffer.from(digest).toString('hex')
      tensors[name] = { dtype: DTYPES[dtype]?.name ?? '', shape, sha256 }
    }
    return tensors
  }

  /** All memory that the parameters lie in, and what another process opens it with, in hex. */
  allocations(): { readonly handle: string; readonly bytes: number }[] {
    return this.#chunks.map(({ memory, bytes }) => ({
      handle: this.#library.memoryExport(memory).toHex(),
      bytes,
    }))
  }

  /** Of everything that is held. */
  places(): Place[] {
    const numbers = new Map(this.#chunks.map((chunk, number) => [chunk, number]))
    return Array.from(this.#slots, ([name, { dtype, shape, shard, chunk, offset }]) => ({
      name,
      dtype,
      shape,
      shard,
      allocation: numbers.get(chunk) as number,
      destination: offset,
    }))
  }

  /** Into other memory, with its contents, as an engine may do between two updates. Blocks. */
  move(signal: Handle, timeoutMs: number): void {
    this.#changes++
    for (const chunk of this.#chunks) {
      const before = chunk.memory
      const piece = { dstOffset: 0, srcOffset: 0, bytes: chunk.used }
      chunk.memory = this.#library.memoryAlloc(this.#device, chunk.bytes)
      if (chunk.used > 0) this.#library.copyDevice(this.#stream, chunk.memory, before, [piece])
      this.#library.streamSync(this.#stream, signal, timeoutMs)
      this.#library.memoryFree(before)
    }
  }

  free(): void {
    this.#library.streamDestroy(this.#stream)
    for (const chunk of this.#chunks) this.#library.memoryFree(chunk.memory)
    this.#chunks.length = 0
    this.#slots.clear()
  }
}
