import { randomUUID } from 'node:crypto'
import type { Handle } from '@ckpt/cuda'
import type { PartId } from '../memory/protocol.ts'

/** A shared-memory buffer that a trainer was given. */
export interface LentBuffer {
  readonly id: string
  /** The checkpoint that it belongs to. */
  readonly name: string
  readonly buffer: Handle
  /** As asked for. */
  readonly bytes: number
  /** The version whose tensors are in it; null: not registered yet. */
  part: PartId | null
}

/** The shared-memory buffers that trainers have, until their version is dropped or replaced. */
export class LentBuffers {
  readonly #buffers = new Map<string, LentBuffer>()

  add(name: string, buffer: Handle, bytes: number): LentBuffer {
    const lent: LentBuffer = { id: randomUUID(), name, buffer, bytes, part: null }
    this.#buffers.set(lent.id, lent)
    return lent
  }

  get(id: string): LentBuffer | undefined {
    return this.#buffers.get(id)
  }

  /** Buffers without a version in them; `name`: of this checkpoint only. */
  unused(name: string | null): LentBuffer[] {
    return [...this.#buffers.values()].filter(
      (lent) => lent.part === null && (name === null || lent.name === name),
    )
  }

  forget(buffers: readonly LentBuffer[]): void {
    for (const { id } of buffers) this.#buffers.delete(id)
  }

  /** The part is dropped: its buffers are known no more. */
  forgetPart(part: PartId): void {
    this.forget([...this.#buffers.values()].filter((lent) => lent.part === part))
  }
}
