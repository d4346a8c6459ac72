import { drainMicrotasks } from 'bun:jsc'
import { EventQueue } from '@ckpt/core/update/event-queue'
import { setClockOrigin } from '../clock.ts'

/** A process or a thread: what is dead does nothing any more. */
export class Life {
  readonly #parent: Life | null
  #over = false

  constructor(parent: Life | null = null) {
    this.#parent = parent
  }

  get alive(): boolean {
    return !this.#over && (this.#parent?.alive ?? true)
  }

  end(): void {
    this.#over = true
  }
}

/** As `setTimeout` returns it. */
export class Timer {
  cancelled = false
  unref(): this {
    return this
  }
  ref(): this {
    return this
  }
}

interface Due {
  readonly life: Life
  readonly timer: Timer
  readonly run: () => void
}

/** An event that is no longer of use to anybody must not keep a simulation going for ever. */
const EVENTS_MAX = 2_000_000

/**
 * The only clock of a simulation, and all that happens in it, in order of time. While it is {@link SimulatedTime.install}ed the
 * timers and clocks of this process are its own, so that the daemon's code runs in it as it is. Between two events every microtask
 * runs.
 */
export class SimulatedTime {
  nowMs = 0
  events = 0
  readonly #queue = new EventQueue<Due>()
  /** What happens now has taken so long already. */
  #busyMs = 0
  #life = new Life()

  /** Whoever does what happens now. */
  get life(): Life {
    return this.#life
  }

  /** Whoever does what happens now waits in a call for so long: its clock goes on, and it has to do nothing else until then. */
  busy(ms: number): void {
    this.#busyMs += ms
  }

  /** When whoever does what happens now has done it. */
  get doneMs(): number {
    return this.nowMs + this.#busyMs
  }

  /** What `life` does after so long, unless it has died. */
  after(delayMs: number, run: () => void, life = this.#life): Timer {
    return this.at(this.nowMs + delayMs, run, life)
  }

  /** What is to happen at the same moment happens in the order in which it was said. */
  at(atMs: number, run: () => void, life = this.#life): Timer {
    const timer = new Timer()
    this.#queue.push(Math.max(this.nowMs, atMs), { life, timer, run })
    return timer
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve))
  }

  /** Does something as `life`. */
  as<T>(life: Life, run: () => T): T {
    const before = this.#life
    this.#life = life
    try {
      const value = run()
      drainMicrotasks()
      return value
    } finally {
      this.#life = before
    }
  }

  /** Goes on until `until` is true. False: it is not at `limitMs`. */
  run(until: () => boolean, limitMs: number): boolean {
    const limit = this.at(limitMs, () => {}, new Life())
    for (;;) {
      if (until()) break
      const next = this.#queue.pop()
      if (next === undefined) return false
      const { life, timer, run } = next.event
      if (timer.cancelled || !life.alive) continue
      this.nowMs = next.seconds
      if (timer === limit) return until()
      if (++this.events > EVENTS_MAX) throw new Error('the simulation does not end')
      this.as(life, run)
      this.#busyMs = 0
    }
    limit.cancelled = true
    return true
  }

  /** Returns what puts the real ones back. */
  install(): () => void {
    const { setTimeout, clearTimeout, setInterval, clearInterval } = globalThis
    const { sleep, gc } = Bun
    const { now } = performance
    const clear = (timer: unknown) => {
      if (timer instanceof Timer) timer.cancelled = true
    }
    const replaced = {
      setTimeout: (run: () => void, ms = 0) => this.after(ms, run),
      setInterval: (run: () => void, ms = 0) => this.#repeat(run, ms),
      clearTimeout: clear,
      clearInterval: clear,
    }
    Object.assign(globalThis, replaced)
    Bun.sleep = (ms) => this.sleep(Number(ms))
    // all of this process's, for each idle rank
    Bun.gc = () => {}
    performance.now = () => this.doneMs
    const origin = setClockOrigin(0)
    return () => {
      Object.assign(globalThis, { setTimeout, clearTimeout, setInterval, clearInterval })
      Bun.sleep = sleep
      Bun.gc = gc
      performance.now = now
      setClockOrigin(origin)
    }
  }

  #repeat(run: () => void, ms: number): Timer {
    const timer = new Timer()
    const again = () => {
      if (timer.cancelled) return
      run()
      this.after(ms, again)
    }
    this.after(ms, again)
    return timer
  }
}
