import { buildTable, layoutDigest, type SourceSpace, type TensorRow } from '@ckpt/core'
import { CkptError, type TensorTable } from '@ckpt/core'
import type { HeldVersion, VersionLease } from '../types.ts'
import type { SimulatedLibrary } from './library.ts'
import type { Random } from './random.ts'
import { keyOf } from './remote-reads.ts'
import type { Witness } from './violation.ts'

export const CHECKPOINT = 'model'

/** Where an engine must find what of a tensor. */
export interface ExpectedTensor {
  readonly bytes: number
  readonly buffer: number
  readonly offset: number
}

export interface CheckpointSizes {
  /** Of this daemon. */
  readonly tensors: number
  readonly bytesMost: number
}

/** What one daemon holds of the checkpoint: each version in buffers of its own. */
export class SimulatedRegistry {
  readonly #library: SimulatedLibrary
  readonly #witness: Witness
  readonly #ranks: number
  readonly #table: TensorTable
  readonly #source: SourceSpace
  #version: HeldVersion | null = null
  #versions = 0
  leases = 0

  constructor(
    random: Random,
    library: SimulatedLibrary,
    witness: Witness,
    node: number,
    ranks: number,
    sizes: CheckpointSizes,
  ) {
    this.#library = library
    this.#witness = witness
    this.#ranks = ranks
    const rows: TensorRow[] = []
    const starts: number[] = []
    const bytes: number[] = []
    let end = 0
    for (let i = 0; i < sizes.tensors; i++) {
      const size = random.chance(0.05) ? 0 : random.integer(1, sizes.bytesMost)
      // now and then another buffer, which may lie behind a gap
      const fresh = starts.length === 0 || random.chance(0.2)
      if (fresh) {
        end += random.chance(0.5) ? 4096 : 0
        starts.push(end)
        bytes.push(0)
      }
      const offset = end
      rows.push({ name: `t.${i}.${node}`, dtype: U8, shape: [size], bytes: size, owner: 0, offset })
      bytes[bytes.length - 1] = (bytes.at(-1) as number) + size
      end += size
    }
    this.#table = buildTable(rows)
    this.#source = { starts: Float64Array.from(starts), bytes: Float64Array.from(bytes) }
    this.register()
  }

  /** Another version of the same shapes. */
  register(): void {
    const buffers = Uint32Array.from(this.#source.starts, () => this.#library.serveBuffer())
    const table = this.#table
    const sources = [this.#source]
    this.#versions++
    this.#version = {
      name: CHECKPOINT,
      version: null,
      serial: this.#versions,
      table,
      sources,
      buffers: [buffers],
      readings: [null],
      ownerRanks: [Array.from({ length: this.#ranks }, (_, rank) => rank)],
      bytes: table.bytes.reduce((sum, bytes) => sum + bytes, 0),
      ownerNodes: [0],
      layoutDigest: layoutDigest(table, sources),
      files: [],
    }
  }

  /** What an update that begins now brings. */
  get expected(): [string, ExpectedTensor][] {
    const { names, bytes, offsets } = this.#table
    return names.map((name, i) => {
      const offset = offsets[i] as number
      const index = this.#source.starts.findLastIndex((start) => start <= offset)
      const start = this.#source.starts[index] ?? 0
      const buffer = this.#version?.buffers[0]?.[index] ?? 0
      return [name, { bytes: bytes[i] as number, buffer, offset: offset - start }]
    })
  }

  lease(): VersionLease {
    const version = this.#version
    if (version === null || this.#table.names.length === 0) {
      throw new CkptError('checkpoint_not_found', `there is no checkpoint ${CHECKPOINT}`)
    }
    this.leases++
    let released = false
    return {
      version,
      complete: Promise.resolve(0),
      check: null,
      serve: async (nodes) =>
        version.buffers.map((own) => {
          if (!nodes.has(0)) return null
          const address = keyOf(this.#library.shared.handle())
          return { address, keys: Array.from(own, keyOf) }
        }),
      release: () => {
        if (released) return
        released = true
        this.leases--
        const read = version.buffers[0]?.find((buffer) => this.#library.reads(buffer))
        if (read !== undefined) this.#witness.violated('a checkpoint is released that is read')
      },
    }
  }

  gather(): void {}
}

export const U8 = 1
