import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { Conversation } from './conversation.ts'
import type {
  ConversationAction,
  ConversationEvent,
  ConversationLimits,
  Dialect,
} from './conversation-types.ts'
import { pickleNone } from './pickle-writer.ts'
import { readEngineMessage } from './pickle-reader.ts'
import type { FaultKind, Step } from './testing/scripted-worker.ts'
import { HANDLE, perform } from './testing/stage.ts'

const LIST = Uint8Array.of(0x80, 4, 0x5d, 0x2e)
const dialects = fc.constantFrom<Dialect>('D1', 'D2', 'D3', 'D4')
const limits: fc.Arbitrary<ConversationLimits> = fc.record({
  openMs: fc.integer({ min: 1, max: 500 }),
  replyMs: fc.integer({ min: 1, max: 500 }),
  totalMs: fc.integer({ min: 1, max: 2000 }),
  leaveMs: fc.integer({ min: 1, max: 500 }),
})

/** Mostly nothing. */
function seldom<T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> {
  return fc.oneof({ weight: 3, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary })
}

function types(actions: readonly ConversationAction[]): string[] {
  return actions.map(({ type }) => type)
}

/** What holds for the actions of every conversation, whatever happened. */
function checkActions(actions: readonly ConversationAction[]): void {
  const all = types(actions)
  for (const once of ['opened', 'failed', 'finished', 'ring_free', 'close']) {
    expect(all.filter((type) => type === once).length).toBeLessThanOrEqual(1)
  }
  expect(all.includes('failed') && all.includes('finished')).toBe(false)
  expect(all.at(-1)).toBe('close')
  const failed = all.indexOf('failed')
  if (failed >= 0) {
    const after = all.slice(failed + 1)
    expect(after.filter((type) => type === 'acked' || type === 'opened')).toEqual([])
  }
  const acked = actions.flatMap((action) => (action.type === 'acked' ? [action.bucket] : []))
  expect(acked).toEqual([...acked.keys()])
  const close = actions.at(-1) as Extract<ConversationAction, { type: 'close' }>
  expect(close.ringFree).toBe(all.includes('ring_free'))
}

describe('random workers', () => {
  const fault = fc
    .record({
      kind: fc.constantFrom<FaultKind>('error', 'hang', 'close'),
      step: fc.constantFrom<Step>('handle', 'list', 'release', 'post'),
      bucket: fc.nat(4),
    })
    .map(({ kind, step, bucket }) => (step === 'list' ? { kind, step, bucket } : { kind, step }))
  const plays = fc.record({
    script: fc.record({
      dialect: dialects,
      fault: seldom(fault),
      runMs: fc.nat(100),
      postMs: fc.nat(100),
    }),
    buckets: fc.nat(5),
    limits,
    http: fc.boolean(),
    remembered: fc.option(dialects, { nil: undefined }),
    connectMs: fc.option(fc.nat(300), { freq: 20 }),
    answer: seldom(
      fc.record({
        atMs: fc.nat(1000),
        status: fc.constantFrom(0, 200, 404, 500),
        message: fc.string(),
      }),
    ),
    abortMs: seldom(fc.nat(1000)),
    delays: fc.array(fc.nat(40), { minLength: 1, maxLength: 40 }),
    ticksMs: fc.array(fc.nat(1500), { maxLength: 10 }),
  })

  test('whatever a worker does and whenever events arrive, it ends in time and in order', () => {
    let finished = 0
    let failed = 0
    fc.assert(
      fc.property(plays, ({ delays, ...play }) => {
        const delayMs = (order: number) => delays[order % delays.length] as number
        const answer = play.http ? play.answer : undefined
        const { actions, freedTooEarly } = perform({ ...play, answer, delayMs })
        checkActions(actions)
        // an answer that is not the worker's own says nothing about what the worker does, but of D1 it is believed
        if (answer === undefined || play.remembered !== 'D1') expect(freedTooEarly).toBe(false)
        const { totalMs, leaveMs } = play.limits
        expect(actions.at(-1)?.atMs).toBeLessThanOrEqual(totalMs + leaveMs)
        const failure = actions.find(({ type }) => type === 'failed')
        if (failure) {
          failed++
          expect(failure.atMs).toBeLessThanOrEqual(totalMs)
        } else {
          finished++
          const lists = actions.filter(
            (action) => action.type === 'send' && readEngineMessage(action.body).type === 'list',
          )
          expect(lists).toHaveLength(play.buckets)
        }
      }),
      { numRuns: 3000 },
    )
    // the property means something only when both happen
    expect(finished).toBeGreaterThan(100)
    expect(failed).toBeGreaterThan(100)
  })
})

describe('random events', () => {
  const events = fc.array(
    fc.record({
      type: fc.constantFrom(
        'connected',
        'disconnected',
        'reply',
        'reply',
        'reply',
        'announce',
        'announce',
        'end',
        'http',
        'abort',
        'tick',
      ),
      waitMs: fc.nat(120),
      ok: fc.boolean(),
      body: fc.oneof(
        { weight: 8, arbitrary: fc.constant(new Uint8Array(0)) },
        { weight: 1, arbitrary: fc.uint8Array({ minLength: 1, maxLength: 20 }) },
      ),
    }),
    { maxLength: 60 },
  )

  test('no order of events breaks a promise', () => {
    fc.assert(
      fc.property(
        events,
        limits,
        fc.boolean(),
        fc.option(dialects, { nil: undefined }),
        (script, limits, http, dialect) => {
          const conversation = new Conversation({ handle: HANDLE, rank: 0, limits, http, dialect })
          const watch = new Watch(conversation)
          watch.step({ type: 'start', nowMs: 0 })
          let nowMs = 0
          for (const { type, waitMs, ok, body } of script) {
            nowMs += waitMs
            const event = watch.legal(type, { nowMs, ok, body, http })
            if (event !== null) watch.step(event)
          }
          for (let ticks = 0; conversation.phase !== 'closed'; ticks++) {
            expect(ticks).toBeLessThan(10)
            nowMs = Math.max(nowMs, conversation.deadlineMs as number)
            watch.step({ type: 'tick', nowMs })
          }
          checkActions(watch.actions)
        },
      ),
      { numRuns: 5000 },
    )
  })
})

/**
 * Steps a conversation with events that its driver may send, and watches the order of sends and
 * replies.
 */
class Watch {
  readonly actions: ConversationAction[] = []
  readonly #conversation: Conversation
  #announced = 0
  #acked = 0
  #ended = false
  #answered = false
  #linked = false
  /** Messages that the worker has not replied to. */
  #open = 0

  constructor(conversation: Conversation) {
    this.#conversation = conversation
  }

  legal(
    type: string,
    { nowMs, ok, body, http }: { nowMs: number; ok: boolean; body: Uint8Array; http: boolean },
  ): ConversationEvent | null {
    switch (type) {
      case 'reply':
        return { type, body, nowMs }
      case 'announce':
        // an executor announces at most one bucket ahead
        if (this.#ended || this.#announced > this.#acked) return null
        return { type, bucket: this.#announced++, list: LIST, nowMs }
      case 'end':
        this.#ended = true
        return { type, nowMs }
      case 'http':
        if (!http || this.#answered) return null
        this.#answered = true
        return { type, ok, status: ok ? 200 : 500, message: 'words', nowMs }
      case 'abort':
        return { type, failure: { code: 'aborted', message: 'by test' }, nowMs }
      default:
        return { type: type as 'connected' | 'disconnected' | 'tick', nowMs }
    }
  }

  step(event: ConversationEvent): void {
    const closed = this.#conversation.phase === 'closed'
    if (event.type === 'reply') this.#open = Math.max(0, this.#open - 1)
    if (event.type === 'connected' && !this.#linked) this.#open = 0
    if (event.type === 'connected') this.#linked = true
    if (event.type === 'disconnected') this.#linked = false
    const actions = this.#conversation.step(event)
    if (closed) expect(actions).toEqual([])
    for (const action of actions) {
      if (action.type === 'acked') {
        this.#acked++
        expect(event).toMatchObject({ type: 'reply', body: new Uint8Array(0) })
      }
      if (action.type === 'send') this.#checkSend(action.body)
    }
    this.actions.push(...actions)
    const { deadlineMs } = this.#conversation
    if (this.#conversation.phase === 'closed') expect(deadlineMs).toBe(null)
    else expect(deadlineMs).toBeGreaterThan(event.nowMs)
  }

  #checkSend(body: Uint8Array): void {
    expect(this.#linked).toBe(true)
    if (readEngineMessage(body).type === 'error') return
    expect(this.#open).toBe(0)
    this.#open++
    if (body.length === pickleNone().length && readEngineMessage(body).type === 'none') {
      expect(this.#ended).toBe(true)
      expect(this.#acked).toBe(this.#announced)
    }
  }
}
