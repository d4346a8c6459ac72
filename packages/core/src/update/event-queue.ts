/**
 * Events in order of time; those of equal time in the order in which they were added. A binary
 * heap.
 */
export class EventQueue<Event> {
  private readonly heap: Entry<Event>[] = []
  private added = 0

  push(seconds: number, event: Event): void {
    const entry = { seconds, order: this.added++, event }
    let at = this.heap.length
    this.heap.push(entry)
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!before(entry, this.heap[parent] as Entry<Event>)) break
      this.heap[at] = this.heap[parent] as Entry<Event>
      at = parent
    }
    this.heap[at] = entry
  }

  /** The earliest event, undefined when there is none. */
  pop(): { readonly seconds: number; readonly event: Event } | undefined {
    const first = this.heap[0]
    const last = this.heap.pop()
    if (first === undefined || last === undefined || this.heap.length === 0) return first
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= this.heap.length) break
      const right = this.heap[child + 1]
      if (right !== undefined && before(right, this.heap[child] as Entry<Event>)) child++
      if (!before(this.heap[child] as Entry<Event>, last)) break
      this.heap[at] = this.heap[child] as Entry<Event>
      at = child
    }
    this.heap[at] = last
    return first
  }
}

interface Entry<Event> {
  readonly seconds: number
  readonly order: number
  readonly event: Event
}

function before<Event>(a: Entry<Event>, b: Entry<Event>): boolean {
  return a.seconds < b.seconds || (a.seconds === b.seconds && a.order < b.order)
}
