import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  compareWeights,
  randomTensor,
  readSafetensors,
  type WrittenTensor,
  writeSafetensors,
} from '../support/checkpoint.ts'
import type { EngineWeights } from '@ckpt/core'

const TENSORS = 32
/** With the daemons' bucket of half a MiB two fit. */
const BYTES = 200_000
/** Buckets of one update. */
export const BUCKETS = TENSORS / 2

/**
 * One version as the daemons hold it: the first of three has the first third of the tensors, the second one the second, and the
 * third one all of them, so that the first and the third, or the third alone, have every tensor.
 */
export class TestVersion {
  readonly #dir: string
  readonly #seed: number
  /** What the daemons know it by: several hold the same tensors. */
  readonly name: string

  constructor(dir: string, seed: number) {
    this.#dir = join(dir, `version-${seed}`)
    this.#seed = seed
    this.name = `v${seed}`
    mkdirSync(this.#dir)
    const third = Math.floor(TENSORS / 3)
    this.#write(0, this.#tensors(0, third))
    this.#write(1, this.#tensors(third, 2 * third))
    this.#write(2, this.#tensors(0, TENSORS))
  }

  #tensors(begin: number, end: number): WrittenTensor[] {
    return Array.from({ length: end - begin }, (_, i) => {
      const name = `layer.${begin + i}.weight`
      return randomTensor(this.#seed, name, 'U8', 1, BYTES + 2 * (begin + i))
    })
  }

  #write(node: number, tensors: readonly WrittenTensor[]): void {
    writeSafetensors(this.file(node), tensors)
  }

  file(node: number): string {
    return join(this.#dir, `node-${node}.safetensors`)
  }

  /** @throws Error with a readable difference between what an engine holds and what the files say */
  compare({ ranks, torn }: EngineWeights): void {
    if (torn) throw new Error('it is torn')
    compareWeights(ranks, readSafetensors([this.file(2)]), 1)
  }
}
