import type { Broadcasts } from './broadcasts.ts'

interface Meeting {
  readonly members: number
  readonly come: Set<number>
  readonly broadcasts: Broadcasts
  waiting: (() => void)[]
  /** One has gone before all had come. */
  broken: boolean
}

/**
 * Where the members of a communicator meet. A native call waits there; a simulated thread waits before it makes the call, which
 * then finds everybody there or nobody to come.
 */
export class Meetings {
  readonly #make: (members: number) => Broadcasts
  /** By the id of the communicator, hex. */
  readonly #meetings = new Map<string, Meeting>()

  constructor(make: (members: number) => Broadcasts) {
    this.#make = make
  }

  /** One has come; `told` when something about this meeting changes. */
  come(id: string, members: number, member: number, told: () => void): void {
    const known = this.#meetings.get(id)
    const meeting = known ?? {
      members,
      come: new Set(),
      broadcasts: this.#make(members),
      waiting: [],
      broken: false,
    }
    this.#meetings.set(id, meeting)
    meeting.come.add(member)
    meeting.waiting.push(told)
    if (meeting.come.size < members) return
    for (const one of meeting.waiting.splice(0)) one()
  }

  /** One has waited in vain: it never comes about. */
  leave(id: string): void {
    const meeting = this.#meetings.get(id)
    if (meeting !== undefined && meeting.come.size < meeting.members) meeting.broken = true
  }

  /** What they do together; null: not all have come. */
  complete(id: string): Broadcasts | null {
    const meeting = this.#meetings.get(id)
    const complete =
      meeting !== undefined && meeting.come.size === meeting.members && !meeting.broken
    return complete ? meeting.broadcasts : null
  }
}
