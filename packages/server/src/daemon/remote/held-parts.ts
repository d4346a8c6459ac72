import { CkptError, type TensorTable } from '@ckpt/core'
import type { HeldLayout } from '@ckpt/core/cluster/layout-columns'
import type { RemoteNode } from './remote-node.ts'

interface HeldPart {
  /** In which of its sessions it was told. */
  readonly node: RemoteNode
  readonly layout: HeldLayout
}

/**
 * What each daemon had of a checkpoint when it was asked last. One that is lost, or has come again without its memory, takes its part
 * with it: an update must not go on as if there had never been such tensors.
 */
export class HeldParts {
  /** By checkpoint and node rank. */
  readonly #parts = new Map<string, Map<number, HeldPart>>()

  /** A daemon that is there tells of its part. Null: it has none; of one that had one before it was lost that is no answer. */
  tell(name: string, node: RemoteNode, layout: HeldLayout | null): void {
    const parts = this.#parts.get(name) ?? new Map<number, HeldPart>()
    if (layout !== null) parts.set(node.node, { node, layout })
    // its user has dropped it
    else if (parts.get(node.node)?.node === node) parts.delete(node.node)
    if (parts.size > 0) this.#parts.set(name, parts)
    else this.#parts.delete(name)
  }

  forget(name: string): void {
    this.#parts.delete(name)
  }

  /**
   * @param present node ranks whose parts the table has
   * @throws CkptError `tensor_missing`: nobody who is there holds a tensor of a part that is gone
   */
  requireWhole(name: string, { names }: TensorTable, present: ReadonlySet<number>): void {
    const gone = [...(this.#parts.get(name) ?? [])].filter(([node]) => !present.has(node))
    if (gone.length === 0) return
    const held = new Set(names)
    for (const [node, part] of gone) {
      const missing = part.layout.table.names.filter((tensor) => !held.has(tensor))
      const [tensor] = missing
      if (tensor === undefined) continue
      const others = missing.length === 1 ? '' : ` and ${missing.length - 1} others`
      const message = `only node ${node}, which was lost, held ${tensor}${others} of ${name}: register that again, or drop ${name} at the leader`
      throw new CkptError('tensor_missing', message, { tensor, phase: 'gather' })
    }
  }
}
