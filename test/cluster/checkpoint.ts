import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import {
  compareWeights,
  randomTensor,
  readSafetensors,
  type WrittenTensor,
  writeSafetensors,
} from '../support/checkpoint.ts'
import type { EngineWeights } from '@ckpt/core'

/** What versions look like, and who holds which of their tensors. */
export interface CheckpointShape {
  readonly tensors: number
  /** Of the first tensor; each is two bytes larger than the one before it. */
  readonly bytes: number
  /** Of each node: which of the parts it holds that the tensors are divided into. */
  readonly held: readonly (readonly number[])[]
}

/** One version as the daemons hold it, a file for each part of the tensors. */
export class TestVersion {
  readonly #dir: string
  readonly #seed: number
  readonly #shape: CheckpointShape
  readonly #files: readonly string[]
  /** What the daemons know it by: several hold the same tensors. */
  readonly name: string

  constructor(dir: string, seed: number, shape: CheckpointShape) {
    this.#dir = join(dir, `version-${seed}`)
    this.#seed = seed
    this.#shape = shape
    this.name = `v${seed}`
    mkdirSync(this.#dir)
    const count = Math.max(...shape.held.flat()) + 1
    this.#files = Array.from({ length: count }, (_, part) => this.#write(part, count))
  }

  #write(part: number, count: number): string {
    const { tensors, bytes } = this.#shape
    const [begin, end] = partOf(part, count, tensors)
    const written: WrittenTensor[] = []
    for (let i = begin; i < end; i++) {
      written.push(randomTensor(this.#seed, `layer.${i}.weight`, 'U8', 1, bytes + 2 * i))
    }
    const file = join(this.#dir, `part-${part}.safetensors`)
    writeSafetensors(file, written)
    return file
  }

  /** Of the tensors of each part. */
  get partBytes(): number[] {
    const { tensors, bytes } = this.#shape
    const count = this.#files.length
    return this.#files.map((_, part) => {
      const [begin, end] = partOf(part, count, tensors)
      // each is two bytes larger than the one before it
      return (end - begin) * bytes + end * (end - 1) - begin * (begin - 1)
    })
  }

  /** With every tensor. */
  get files(): readonly string[] {
    return this.#files
  }

  /** That a node holds. */
  filesOf(node: number): readonly string[] {
    const parts = this.#shape.held[node] ?? []
    return parts.map((part) => this.#files[part] as string)
  }

  /** @throws Error with a readable difference between what an engine holds and what the files say */
  compare({ ranks, torn }: EngineWeights): void {
    if (torn) throw new Error('it is torn')
    compareWeights(ranks, readSafetensors(this.#files), 1)
  }

  /** Of which no engine has anything any more. */
  remove(): void {
    rmSync(this.#dir, { recursive: true })
  }
}

/** The first tensor of one of so many parts, and the first of the next. */
function partOf(part: number, count: number, tensors: number): [number, number] {
  return [Math.floor((part * tensors) / count), Math.floor(((part + 1) * tensors) / count)]
}
