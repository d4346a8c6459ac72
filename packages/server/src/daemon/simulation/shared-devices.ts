import { Broadcasts } from './broadcasts.ts'
import { Meetings } from './meetings.ts'
import type { SharedAllocation } from './parameters.ts'
import type { Random } from './random.ts'
import type { Life, SimulatedTime } from './time.ts'
import type { Witness } from './violation.ts'

/** How fast the devices of a simulation are. */
export interface DeviceSpeed {
  readonly h2dBytesPerMs: number
  readonly broadcastBytesPerMs: number
  /** The most that a piece of work takes beside its bytes. */
  readonly extraMs: number
}

/** What the processes of a simulation have together: where their ranks meet, and handles that differ among all of them. */
export class SharedDevices {
  readonly time: SimulatedTime
  readonly random: Random
  readonly speed: DeviceSpeed
  readonly witness: Witness
  readonly meetings = new Meetings((members) => new Broadcasts(this, members, 'complete'))
  /** Engines' memory that can be opened, by the number in its handle. */
  readonly allocations = new Map<number, SharedAllocation>()
  /** The process that has a buffer of a checkpoint. */
  readonly owners = new Map<number, Life>()
  #handles = 0

  constructor(time: SimulatedTime, random: Random, speed: DeviceSpeed, witness: Witness) {
    this.time = time
    this.random = random
    this.speed = speed
    this.witness = witness
  }

  handle(): number {
    return ++this.#handles
  }

  durationMs(bytes: number): number {
    return bytes / this.speed.broadcastBytesPerMs + this.random.between(0, this.speed.extraMs)
  }
}
