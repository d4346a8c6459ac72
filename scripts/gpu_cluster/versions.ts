/** Two versions of a checkpoint in two parts, one for each daemon, and what engines must hold of them. */
import { mkdirSync, mkdtempSync, rmSync, statfsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { EngineWeights } from '@ckpt/core'
import { expectedOf, layersOf } from '../../packages/bench/src/checkpoint.ts'
import type { Expected } from '../../packages/bench/src/engine.ts'
import { inThreads } from '../../packages/bench/src/file-threads.ts'
import { shardsOf } from '../../packages/server/src/cli/write-checkpoint.ts'
import { removeAtExit } from './leftovers.ts'

const MIB = 2 ** 20
const MATRIX_MIB_MAX = 16
const SHARD_BYTES_MAX = 2 ** 28
const SHM = '/dev/shm'

/** Files of shared memory, where it is large enough for them and for as much again. */
function placeFor(bytes: number): string {
  const { bavail, bsize } = statfsSync(SHM)
  return bavail * bsize > 2 * bytes ? SHM : tmpdir()
}

export interface Version {
  readonly name: string
  /** By node rank; neighbours in the natural order of the names are in different parts. */
  readonly parts: readonly [readonly string[], readonly string[]]
}

/** Bytes of tensors, those of every rank on its own, and of those of them that are not what the files say. */
export interface Compared {
  readonly comparedBytes: number
  readonly wrongBytes: number
}

export class TestVersions {
  readonly both: readonly [Version, Version]
  /** Of one version, both parts. */
  readonly bytes: number
  readonly dir: string
  /** By version and number of ranks. */
  readonly #expected = new Map<string, Expected>()
  #turn = 0

  private constructor(dir: string, bytes: number, both: readonly [Version, Version]) {
    this.dir = dir
    this.bytes = bytes
    this.both = both
  }

  /** @param mib of a part, about */
  static async write(mib: number): Promise<TestVersions> {
    const dir = mkdtempSync(join(placeFor(4 * mib * MIB), 'ckpt-gpu-cluster-'))
    removeAtExit(dir)
    const matrixMib = Math.min(MATRIX_MIB_MAX, Math.max(1, Math.floor(mib / 8)))
    const layers = layersOf(2 * mib * MIB, matrixMib * MIB)
    const isOf = (part: number) => (name: string) => Number(name.split('.')[1]) % 2 === part
    const shards = [1, 2].map((seed) =>
      [0, 1].map((part) => {
        const own = join(dir, `version-${seed}-part-${part}`)
        mkdirSync(own)
        const shapes = layers.filter(({ name }) => isOf(part)(name))
        return shardsOf(own, shapes, SHARD_BYTES_MAX).map((shard) => ({ shard, seed }))
      }),
    )
    try {
      await inThreads(shards.flat(2).map((job) => ({ type: 'write', ...job })))
    } catch (error) {
      rmSync(dir, { recursive: true, force: true })
      throw error
    }
    const both = shards.map((parts, index) => {
      const files = parts.map((jobs) => jobs.map(({ shard }) => shard.path))
      return { name: `${index + 1}`, parts: files as [string[], string[]] }
    })
    const bytes = layers.reduce((sum, { shape }) => sum + 2 * shape.reduce((a, b) => a * b, 1), 0)
    return new TestVersions(dir, bytes, both as unknown as readonly [Version, Version])
  }

  /** The other one: every update changes every tensor. */
  next(): Version {
    this.#turn = 1 - this.#turn
    return this.both[this.#turn] as Version
  }

  /** What `ranks` tensor-parallel ranks must hold. */
  async expected({ name, parts }: Version, ranks: number): Promise<Expected> {
    const key = `${name} ${ranks}`
    const known = this.#expected.get(key) ?? (await expectedOf(parts.flat(), ranks))
    this.#expected.set(key, known)
    return known
  }

  async compare(version: Version, { ranks }: EngineWeights, count: number): Promise<Compared> {
    const expected = await this.expected(version, count)
    let comparedBytes = 0
    let wrongBytes = 0
    for (let rank = 0; rank < count; rank++) {
      for (const [name, { bytes, sha256 }] of expected) {
        comparedBytes += bytes
        if (ranks[rank]?.tensors[name]?.sha256 !== sha256[rank]) wrongBytes += bytes
      }
    }
    return { comparedBytes, wrongBytes }
  }

  remove(): void {
    rmSync(this.dir, { recursive: true, force: true })
  }
}
