import type { SeedResult } from './simulate.ts'

/** Updates that were made straight into the engines' memory. */
export interface DirectCounts {
  done: number
  /** Whose engines had been told to hold still. */
  failed: number
  /** Of those: with an engine that has a part of it. */
  torn: number
}

/** How many seeds ended how. */
export class SeedCounts {
  seeds = 0
  updates = 0
  /** Seeds in which something happened that must not. */
  readonly failing: SeedResult[] = []
  readonly direct: DirectCounts = { done: 0, failed: 0, torn: 0 }
  readonly #outcomes = new Map<string, number>()

  add(result: SeedResult): void {
    this.seeds++
    this.updates += result.updates
    for (const how of ['done', 'failed', 'torn'] as const) this.direct[how] += result.direct[how]
    if (result.violation !== null) this.failing.push(result)
    this.#outcomes.set(result.outcome, (this.#outcomes.get(result.outcome) ?? 0) + 1)
  }

  /** Of the first, disturbed update of each seed; the most frequent first. */
  get outcomes(): readonly (readonly [string, number])[] {
    return [...this.#outcomes].sort((a, b) => b[1] - a[1])
  }

  of(outcome: string): number {
    return this.#outcomes.get(outcome) ?? 0
  }
}

/** What a failing seed is told with, and how to have it again. */
export function describeSeed({ seed, violation }: SeedResult): string {
  return `seed ${seed}: ${violation}\n  again: npm run simulate -- --seed ${seed} --trace`
}
