import type { Ring } from './ring.ts'

export interface KeptRing {
  readonly run: number
  readonly ring: Ring
  /** No engine can read it any more. */
  engineLeft: boolean
  /** No copy writes it any more, nor reads the checkpoint for it. */
  settled: boolean
}

export interface QuarantineListener {
  settled(run: number): void
  freed(run: number, bytes: number): void
}

/** Rings that an engine or a copy may still use. */
export class Quarantine {
  readonly #kept: KeptRing[] = []
  readonly #listener: QuarantineListener

  constructor(listener: QuarantineListener) {
    this.#listener = listener
  }

  get empty(): boolean {
    return this.#kept.length === 0
  }

  keep(kept: KeptRing): void {
    this.#kept.push({ ...kept })
  }

  engineLeft(run: number): void {
    for (const kept of this.#kept) if (kept.run === run) kept.engineLeft = true
    this.sweep()
  }

  /** Frees the rings that nobody uses any more. Does not wait. */
  sweep(): void {
    for (const kept of this.#kept.slice()) {
      const { run, ring } = kept
      if (!kept.settled && ring.settle(0)) {
        kept.settled = true
        this.#listener.settled(run)
      }
      if (!kept.settled || !kept.engineLeft) continue
      this.#kept.splice(this.#kept.indexOf(kept), 1)
      ring.free()
      this.#listener.freed(run, ring.bytes)
    }
  }

  /** The process ends: whoever still reads a ring keeps its own mapping. */
  freeAll(): void {
    for (const { ring } of this.#kept.splice(0)) if (ring.settle(0)) ring.free()
  }
}
