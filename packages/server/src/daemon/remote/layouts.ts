import { createHash } from 'node:crypto'
import type { SourceSpace, TensorTable } from '@ckpt/core'
import { decodeLayout, encodeLayout, type HeldLayout } from '@ckpt/core/cluster/layout-columns'

/** A layout as it travels between daemons. */
export interface LayoutColumns {
  /** The same for the same tensors at the same places, NUMA nodes included: plans depend on them. */
  readonly key: string
  readonly columns: Uint8Array
}

/** Layouts that are kept; each has some ten megabytes for the largest models. */
const KEPT_MAX = 8

export function layoutColumns(table: TensorTable, sources: readonly SourceSpace[]): LayoutColumns {
  const columns = encodeLayout({ table, sources })
  return { key: createHash('sha256').update(columns).digest('hex'), columns }
}

/** Layouts by key; of more than {@link KEPT_MAX} the one that was not used for longest goes. */
export class LayoutShelf {
  readonly #kept = new Map<string, HeldLayout>()

  get(key: string): HeldLayout | undefined {
    const layout = this.#kept.get(key)
    if (layout !== undefined) this.#put(key, layout)
    return layout
  }

  /** @throws CkptError where the columns are none, or not those of the key */
  keep(key: string, columns: Uint8Array): HeldLayout {
    const digest = createHash('sha256').update(columns).digest('hex')
    if (digest !== key) throw new Error('a layout does not have the digest that it was told with')
    const layout = decodeLayout(columns)
    this.#put(key, layout)
    return layout
  }

  #put(key: string, layout: HeldLayout): void {
    this.#kept.delete(key)
    this.#kept.set(key, layout)
    const oldest = this.#kept.keys().next()
    if (this.#kept.size > KEPT_MAX && !oldest.done) this.#kept.delete(oldest.value)
  }
}
