import type { Ring } from './ring.ts'

interface Kept {
  readonly run: number
  readonly ring: Ring
  engineLeft: boolean
}

/** Rings that an engine or a copy may still use. */
export class Quarantine {
  readonly #kept: Kept[] = []
  readonly #freed: (run: number, bytes: number) => void

  /** `freed` is told each ring that was freed. */
  constructor(freed: (run: number, bytes: number) => void) {
    this.#freed = freed
  }

  get empty(): boolean {
    return this.#kept.length === 0
  }

  keep(run: number, ring: Ring, engineLeft: boolean): void {
    this.#kept.push({ run, ring, engineLeft })
  }

  /** The engine of this run can no longer read its ring. */
  engineLeft(run: number): void {
    for (const kept of this.#kept) if (kept.run === run) kept.engineLeft = true
    this.sweep()
  }

  /** Frees the rings that nobody uses any more. Does not wait. */
  sweep(): void {
    for (let i = this.#kept.length - 1; i >= 0; i--) {
      const { run, ring, engineLeft } = this.#kept[i] as Kept
      if (!engineLeft || !ring.settle(0)) continue
      this.#kept.splice(i, 1)
      ring.free()
      this.#freed(run, ring.bytes)
    }
  }

  /** The process ends: whoever still reads keeps its own mapping. */
  freeAll(): void {
    for (const { ring } of this.#kept.splice(0)) if (ring.settle(0)) ring.free()
  }
}
