import { CkptError } from '@ckpt/core'

/** Rounds that may be open at once: each waits for its window at most, so only a flood reaches it. */
const ROUNDS_MAX = 256
/** How long after its end a round still answers ranks whose calls came late. */
const LATE_MS = 60_000

/** What makes two calls the same operation. */
export interface CallSubject {
  /** Name of the checkpoint. */
  readonly name: string
  /** Tells operations on the same checkpoint apart. */
  readonly variant: string
  /** The ranks that make this call. */
  readonly expected: readonly number[]
}

export interface CallJoinOptions<Call, Answer> {
  readonly windowMs: number
  /**
   * Starts the operation for the calls of a round, in the order in which they came. `missing` are the expected ranks that have
   * not called within the window. What it throws is the answer to all of them.
   */
  start(subject: CallSubject, calls: readonly Call[], missing: readonly number[]): Answer
  /** When the operation has ended, well or not. */
  settled(answer: Answer): Promise<unknown>
  /** Whether a second call of a rank means the same as its first. */
  same(first: Call, second: Call): boolean
  /** Whether an operation that has started for `calls` also does what a later call asks for. */
  covers(calls: readonly Call[], later: Call): boolean
}

interface OpenRound<Call, Answer> {
  readonly subject: CallSubject
  /** In the order in which they came. */
  readonly calls: Map<number, Call>
  readonly answer: PromiseWithResolvers<Answer>
  timer: ReturnType<typeof setTimeout> | undefined
}

interface StartedRound<Call, Answer> {
  readonly subject: CallSubject
  readonly calls: Map<number, Call>
  readonly answer: Answer
  /** null while it runs. */
  endedMs: number | null
}

/**
 * Joins calls that several ranks make for the same thing into one operation whose answer all of them get. A round starts
 * when every expected rank has called, or when no further rank has called for `windowMs`.
 *
 * The n-th call of a rank belongs to the n-th round, because a rank calls again only after the answer to its last call: a
 * rank that came too late for a round gets that round's answer, and a rank that has called already opens the next round.
 */
export class CallJoin<Call, Answer> {
  readonly #options: CallJoinOptions<Call, Answer>
  readonly #open = new Set<OpenRound<Call, Answer>>()
  /** The latest round of each subject. */
  readonly #started = new Map<string, StartedRound<Call, Answer>>()

  constructor(options: CallJoinOptions<Call, Answer>) {
    this.#options = options
  }

  /** Rejects with `queue_full`, or with what `start` has thrown. */
  async join(subject: CallSubject, rank: number, call: Call): Promise<Answer> {
    const late = this.#lateRound(subject, rank, call)
    if (late !== null) {
      late.calls.set(rank, call)
      return late.answer
    }
    const round = this.#openRound(subject, rank, call) ?? this.#newRound(subject)
    if (!round.calls.has(rank)) {
      round.calls.set(rank, call)
      clearTimeout(round.timer)
      if (missingOf(round).length === 0) this.#begin(round)
      else round.timer = setTimeout(() => this.#begin(round), this.#options.windowMs)
    }
    return await round.answer.promise
  }

  /** The checkpoint has changed: rounds that have ended answer nobody any more. */
  forget(name: string): void {
    for (const [key, round] of this.#started) {
      if (round.subject.name === name && round.endedMs !== null) this.#started.delete(key)
    }
  }

  /** Rejects all calls that still wait for others. */
  close(error: CkptError): void {
    for (const round of this.#open) {
      clearTimeout(round.timer)
      round.answer.reject(error)
    }
    this.#open.clear()
    this.#started.clear()
  }

  #lateRound(subject: CallSubject, rank: number, call: Call): StartedRound<Call, Answer> | null {
    const round = this.#started.get(keyOf(subject))
    if (round === undefined || round.calls.has(rank)) return null
    if (round.endedMs !== null && performance.now() - round.endedMs > LATE_MS) return null
    return this.#options.covers([...round.calls.values()], call) ? round : null
  }

  #openRound(subject: CallSubject, rank: number, call: Call): OpenRound<Call, Answer> | null {
    for (const round of this.#open) {
      if (keyOf(round.subject) !== keyOf(subject)) continue
      const earlier = round.calls.get(rank)
      if (earlier === undefined || this.#options.same(earlier, call)) return round
    }
    return null
  }

  #newRound(subject: CallSubject): OpenRound<Call, Answer> {
    if (this.#open.size >= ROUNDS_MAX) {
      throw new CkptError('queue_full', `${ROUNDS_MAX} calls wait for calls of other ranks`)
    }
    const answer = Promise.withResolvers<Answer>()
    const round = { subject, calls: new Map<number, Call>(), answer, timer: undefined }
    this.#open.add(round)
    return round
  }

  #begin(round: OpenRound<Call, Answer>): void {
    const { subject, calls } = round
    this.#open.delete(round)
    try {
      const answer = this.#options.start(subject, [...calls.values()], missingOf(round))
      const started: StartedRound<Call, Answer> = { subject, calls, answer, endedMs: null }
      this.#started.set(keyOf(subject), started)
      const end = () => this.#end(started)
      this.#options.settled(answer).then(end, end)
      round.answer.resolve(answer)
    } catch (error) {
      round.answer.reject(error)
    }
  }

  #end(round: StartedRound<Call, Answer>): void {
    const nowMs = performance.now()
    round.endedMs = nowMs
    for (const [key, { endedMs }] of this.#started) {
      if (endedMs !== null && nowMs - endedMs > LATE_MS) this.#started.delete(key)
    }
  }
}

/** Names of checkpoints have no control characters. */
function keyOf(subject: CallSubject): string {
  return `${subject.name}\0${subject.variant}`
}

function missingOf<Call, Answer>(round: OpenRound<Call, Answer>): number[] {
  return round.subject.expected.filter((rank) => !round.calls.has(rank))
}
