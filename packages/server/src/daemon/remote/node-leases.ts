import { CkptError } from '@ckpt/core'
import { leaseAny } from '../registry/lease.ts'
import type { Registry } from '../registry/registry.ts'
import type { HeldVersion, VersionLease } from '../types.ts'
import { type LayoutColumns, layoutColumns } from './layouts.ts'
import type { LeaseAnswer, NodeRequest } from './messages.ts'

interface HeldLease {
  /** null: nothing of its checkpoint is here. */
  readonly lease: VersionLease | null
  readonly updateId: string
}

/** What of this daemon's memory the leader's updates use. */
export class NodeLeases {
  readonly #registry: Pick<Registry, 'lease' | 'gather'>
  readonly #busy: (busy: boolean) => void
  readonly #held = new Map<number, HeldLease>()
  /** Of leaders that are gone: what is left of them. */
  #left = 0
  /** A version is told of again and again. */
  readonly #columns = new WeakMap<HeldVersion, LayoutColumns>()

  constructor(registry: Pick<Registry, 'lease' | 'gather'>, busy: (busy: boolean) => void) {
    this.#registry = registry
    this.#busy = busy
  }

  /** null: nothing of that name is held. @throws CkptError what is wrong with what is held */
  take({
    name,
    lease: id,
    updateId,
    held,
    gathers,
  }: Extract<NodeRequest, { op: 'lease' }>): LeaseAnswer | null {
    const found = leaseAny(this.#registry, name, gathers)
    const lease = found instanceof CkptError ? null : found
    if (!this.any) this.#busy(true)
    this.#held.get(id)?.lease?.release(false)
    this.#held.set(id, { lease, updateId })
    if (lease === null) return null
    const { version } = lease
    const columns = this.#columns.get(version) ?? layoutColumns(version.table, version.sources)
    this.#columns.set(version, columns)
    return {
      version: version.version,
      layout: columns.key,
      layoutDigest: version.layoutDigest,
      columns: held === columns.key ? null : columns.columns,
      ownerRanks: version.ownerRanks,
      reading: version.readings.some((reading) => reading !== null),
      inPlace: lease.check !== null,
    }
  }

  /** @throws CkptError `node_lost`: it has ended, or began in another session */
  of(id: number): HeldLease {
    const held = this.#held.get(id)
    if (held === undefined)
      throw new CkptError('node_lost', 'the daemon does not know of this update')
    return held
  }

  get any(): boolean {
    return this.#held.size > 0 || this.#left > 0
  }

  end(id: number, succeeded: boolean): void {
    const held = this.#held.get(id)
    if (held === undefined) return
    held.lease?.release(succeeded)
    this.#held.delete(id)
    if (!this.any) this.#busy(false)
  }

  /** The leader is gone: a later one numbers its leases anew. Returns what ends those of before, to be called once. */
  leave(): () => void {
    const held = [...this.#held.values()]
    this.#held.clear()
    this.#left += held.length
    return () => {
      for (const { lease } of held) lease?.release(false)
      this.#left -= held.length
      if (held.length > 0 && !this.any) this.#busy(false)
    }
  }
}
