import { mkdtempSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { expectedOf, writeVersions } from './checkpoint.ts'
import type { Expected } from './engine.ts'
import type { RowHead } from './row.ts'
import { type Workload, workloadBytes } from './workloads.ts'

/** A version of a checkpoint in files that were just written. */
export interface Version {
  /** Of no other one. */
  readonly name: string
  readonly files: readonly string[]
  readonly expected: Expected
}

/** Two versions that differ in every tensor and take turns, so that every run changes all of them. */
export class Versions {
  readonly bytes: number
  readonly tensors: number
  readonly both: readonly [Version, Version]
  readonly #dir: string
  #turn = 0

  constructor(bytes: number, tensors: number, both: readonly [Version, Version], dir: string) {
    this.bytes = bytes
    this.tensors = tensors
    this.both = both
    this.#dir = dir
  }

  /** Whose turn it is. */
  get present(): Version {
    return this.both[this.#turn] as Version
  }

  next(): void {
    this.#turn = 1 - this.#turn
  }

  head(bench: string, name: string): RowHead {
    return { bench, case: name, tensors: this.tensors, bytes: this.bytes }
  }

  removeFiles(): void {
    rmSync(this.#dir, { recursive: true, force: true })
  }
}

/** Writes both into a directory of their own below `parent`, of so many files each, or more. `stack` removes it. */
export async function writePair(
  stack: AsyncDisposableStack,
  workload: Workload,
  ranks: number,
  parent: string,
  files = 2,
): Promise<Versions> {
  const dir = mkdtempSync(join(parent, 'ckpt-bench-files-'))
  stack.defer(() => rmSync(dir, { recursive: true, force: true }))
  const size = workloadBytes(workload)
  const written = await writeVersions(dir, workload.tensors, size, files)
  const versions: Version[] = []
  for (const [index, { files }] of written.entries()) {
    const name = `${basename(dir)}-${index}`
    versions.push({ name, files, expected: await expectedOf(files, ranks) })
  }
  const { bytes, tensors: count } = written[0]
  return new Versions(bytes, count, versions as [Version, Version], dir)
}
