import { CkptError, type RegisterAnswer } from '@ckpt/core'
import type { MemoryClient } from '../memory/client.ts'
import { HostMemoryError } from '../memory/host-memory-error.ts'
import type { PartId } from '../memory/protocol.ts'
import { log } from '../log.ts'
import { chooseVictims, type Victims } from './eviction.ts'
import { explainMemory } from './explain.ts'
import type { LentBuffers } from './lent.ts'
import type { Turns } from './turns.ts'
import { type HeldPart, supersedes, type Versions } from './versions.ts'

/** What the parts of a registry share. */
export interface Books {
  readonly versions: Versions
  readonly turns: Turns
  readonly lent: LentBuffers
  /** Updates of a name that were accepted and have not ended. */
  readonly claims: ReadonlyMap<string, number>
  readonly memory: MemoryClient
}

/** For whom room is made. */
export interface Newcomer {
  readonly name: string
  readonly owner: number | null
  readonly replace: boolean
}

/** What an answer says of it. */
export type Dropped = Pick<RegisterAnswer, 'previous_dropped' | 'evicted'>

function droppedOf({ previous, evicted }: Victims): Dropped {
  return {
    ...(previous ? { previous_dropped: true } : {}),
    ...(evicted.length > 0 ? { evicted: [...evicted] } : {}),
  }
}

function withDropped(error: CkptError, evicted: readonly string[]): CkptError {
  if (evicted.length === 0) return error
  const { failure } = error
  const names = evicted.map((name) => `'${name}'`).join(', ')
  return CkptError.from({ ...failure, message: `${failure.message}; dropped before: ${names}` })
}

/** Host memory for what is new, and what has to go for it. */
export class Room {
  readonly #books: Books
  readonly #evict: boolean
  /** Names whose version went before the next one is complete. */
  readonly #replacing = new Set<string>()

  constructor(books: Books, evict: boolean) {
    this.#books = books
    this.#evict = evict
  }

  /** Whether the version of a name has gone and the next one is not there yet. */
  replaces(name: string): boolean {
    return this.#replacing.has(name)
  }

  /**
   * Takes memory beside what is held. When the budget does not have both, the version that is replaced goes first, and where the
   * user allows it other checkpoints.
   */
  async make<T>(
    { name, owner, replace }: Newcomer,
    id: PartId,
    take: () => Promise<T>,
  ): Promise<{ readonly value: T; readonly dropped: Dropped }> {
    try {
      return { value: await take(), dropped: {} }
    } catch (error) {
      if (!(error instanceof HostMemoryError)) throw error
      const previous = this.#books.versions
        .all(name)
        .filter((part) => replace && part.leases === 0 && supersedes({ id, owner }, part))
      const checkpoints = this.#evictable(name).map((one) => this.#books.versions.all(one))
      const victims = chooseVictims(previous, checkpoints, error.shortBytes)
      if (victims === null) throw error
      if (victims.previous) this.#replacing.add(name)
      try {
        await this.dropAll(victims.parts)
        for (const evicted of victims.evicted) log.info('evicted {evicted}', { evicted })
        return { value: await take(), dropped: droppedOf(victims) }
      } catch (second) {
        throw withDropped(this.explain(second, name), victims.evicted)
      } finally {
        this.#replacing.delete(name)
      }
    }
  }

  /** Other names whose checkpoints the user allows to go: nothing is done with them, and no update is to come. */
  #evictable(name: string): string[] {
    if (!this.#evict) return []
    const { versions, claims, turns } = this.#books
    return versions.names.filter((one) => one !== name && !claims.has(one) && !turns.busy(one))
  }

  async dropAll(parts: readonly HeldPart[]): Promise<void> {
    const { versions, lent, memory } = this.#books
    const dropped = parts.map((part) => {
      versions.remove(part)
      lent.forgetPart(part.id)
      return memory.call('drop', { part: part.id })
    })
    await Promise.all(dropped)
  }

  /** Says who holds what where memory is short. */
  explain(error: unknown, name: string): CkptError {
    return explainMemory(error, name, this.#books.versions, this.#books.lent)
  }
}
