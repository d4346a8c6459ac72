import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { DirectConversation } from './direct-conversation.ts'
import type { DirectAction, DirectEvent } from './direct-conversation-types.ts'
import { packFrame, unpackFrame } from './frame.ts'

const LIMITS = { openMs: 100, endMs: 1000, leaveMs: 50 }
const LOOKED = packFrame({ ok: true, generation: 'g', handles: ['00ff'], map: 'm' })
const OK = packFrame({ ok: true })
const NO = packFrame({ ok: false, reason: 'it moved' })
const FAILURE = { code: 'aborted', message: 'enough' } as const

type Untimed<T> = T extends unknown ? Omit<T, 'nowMs'> : never
type Event = Untimed<DirectEvent>

/** What comes out, with sent frames as their heads. */
function words(actions: readonly DirectAction[]): unknown[] {
  return actions.map((action) => {
    if (action.type === 'send') return unpackFrame(action.body)!.head
    if (action.type === 'failed') return `${action.failure.code} in ${action.failure.phase}`
    return action.type === 'refused' ? `refused: ${action.reason}` : action.type
  })
}

function play(events: readonly (Event | number)[], http = true): unknown[] {
  const conversation = new DirectConversation({ rank: 3, knownMap: 'k', limits: LIMITS, http })
  let nowMs = 0
  const out = conversation.step({ type: 'start', nowMs })
  for (const event of events) {
    if (typeof event === 'number') {
      nowMs += event
      out.push(...conversation.step({ type: 'tick', nowMs }))
    } else out.push(...conversation.step({ ...event, nowMs } as DirectEvent))
  }
  return words(out)
}

const connected = { type: 'connected' } as const
const disconnected = { type: 'disconnected' } as const
const begin = { type: 'begin' } as const
const copying = { type: 'copying' } as const
const end = { type: 'end' } as const
const leave = { type: 'leave', reason: 'the other rank' } as const
const abort = { type: 'abort', failure: FAILURE } as const
const reply = (body: Uint8Array) => ({ type: 'reply', body }) as const
const http = (ok: boolean, message = '') =>
  ({ type: 'http', ok, status: ok ? 200 : 500, message }) as const

const look = { type: 'look', map: 'k' }
const toBegun = [connected, reply(LOOKED), begin, reply(OK)]
const begun = [look, 'looked', { type: 'begin', generation: 'g' }, 'begun']
const left = (reason: string, untouched: boolean) => ({ type: 'leave', reason, untouched })

describe('a direct update with one worker', () => {
  test('goes from look to the answer of the engine', () => {
    const all = [...toBegun, copying, end, reply(OK), disconnected, http(true)]
    expect(play(all)).toEqual([...begun, { type: 'end' }, 'finished', 'close'])
    // the answer may be faster than the last reply
    expect(play([...toBegun, copying, end, http(true), 200, reply(OK)])).toEqual(play(all))
    const never = [...toBegun, copying, end, http(true), 250]
    expect(play(never)).toContain('engine_failed in release')
    // nobody has posted anything
    expect(play([...toBegun, copying, end, reply(OK)], false)).toEqual([
      ...begun,
      { type: 'end' },
      'finished',
      'close',
    ])
  })

  test('tells what the worker has answered', () => {
    const conversation = new DirectConversation({
      rank: 0,
      knownMap: null,
      limits: LIMITS,
      http: true,
    })
    conversation.step({ type: 'start', nowMs: 0 })
    const [sent] = conversation.step({ type: 'connected', nowMs: 0 })
    expect(words([sent!])).toEqual([{ type: 'look', map: null }])
    const body = packFrame(unpackFrame(LOOKED)!.head as object, Uint8Array.of(7))
    expect(conversation.step({ type: 'reply', body, nowMs: 0 })).toEqual([
      {
        type: 'looked',
        answer: {
          generation: 'g',
          handles: ['00ff'],
          map: 'm',
          encodedMap: Uint8Array.of(7) as never,
        },
      },
    ])
  })

  test.each<[string, (Event | number)[], unknown[]]>([
    [
      'the worker has no map',
      [connected, reply(NO), leave, http(true)],
      [look, 'refused: it moved', left('the other rank', true), 'close'],
    ],
    [
      'the worker speaks otherwise',
      [connected, reply(Uint8Array.of(1)), leave, http(true)],
      [
        look,
        'refused: the reply of the worker is none of ckpt_worker',
        left('the other rank', true),
        'close',
      ],
    ],
    [
      'the memory has changed since',
      [connected, reply(LOOKED), begin, reply(NO), leave, http(true)],
      [...begun.slice(0, 3), 'refused: it moved', left('the other rank', true), 'close'],
    ],
    [
      'the engine has no such method',
      [http(false, '500: no method')],
      ['refused: the engine answered 500: no method', 'close'],
    ],
    [
      'the engine dies',
      [{ type: 'http', ok: false, status: 0, message: 'ECONNRESET' }],
      ['refused: the engine did not answer: ECONNRESET', 'close'],
    ],
    [
      'the worker leaves before it begins',
      [connected, disconnected, http(false, 'KeyError')],
      [look, 'refused: the engine answered KeyError', 'close'],
    ],
    [
      'another rank refuses while it looks',
      [connected, leave, reply(LOOKED), http(true)],
      [look, left('the other rank', true), 'close'],
    ],
    ['another rank refuses before it connects', [leave, connected, http(true)], [left('x', true)]],
    [
      'another rank refuses when it has begun',
      [...toBegun, leave, reply(OK), http(true)],
      [...begun, left('the other rank', true), 'whole', 'close'],
    ],
  ])('nothing is changed: %s', (_, events, wanted) => {
    const out = play(events)
    if (wanted.length > 1) expect(out).toEqual(wanted)
    // a worker that comes late is told, too
    else expect(out).toEqual([left('the update has ended', true), 'close'])
  })

  test.each<[string, (Event | number)[], unknown[]]>([
    ['no worker comes', [100, 50], ['engine_timeout in open', 'close']],
    [
      'it does not say where its weights lie',
      [connected, 100, 50],
      [
        look,
        'engine_timeout in open',
        left('timed out waiting for the engine to say where its weights lie', true),
        'close',
      ],
    ],
    ['its connection ends and nothing explains it', [connected, disconnected, 99], [look]],
    [
      'an abort before the copies',
      [...toBegun, abort, reply(OK), http(true)],
      [...begun, 'aborted in undefined', left('enough', true), 'whole', 'close'],
    ],
    [
      'an abort in the copies',
      [...toBegun, copying, abort, http(false, 'RuntimeError: enough')],
      [...begun, 'aborted in undefined', left('enough', false), 'close'],
    ],
    [
      'the worker dies in the copies',
      [...toBegun, copying, disconnected, http(false, 'EngineDead')],
      [...begun, 'engine_failed in transfer', 'close'],
    ],
    [
      'the engine answers in the copies',
      [...toBegun, copying, http(true)],
      [
        ...begun,
        'engine_failed in transfer',
        left('the engine answered before the update had ended: success', false),
        'close',
      ],
    ],
    [
      'its processing fails',
      [...toBegun, copying, end, reply(NO), http(true)],
      [...begun, { type: 'end' }, 'engine_failed in release', left('it moved', false), 'close'],
    ],
    [
      'its processing takes too long',
      [...toBegun, copying, end, 1000, 50],
      [
        ...begun,
        { type: 'end' },
        'update_timeout in release',
        left(
          "the update's timeout has passed: timed out waiting for the engine's processing after the copies",
          false,
        ),
        'close',
      ],
    ],
    [
      'another worker of its engine fails after it',
      [...toBegun, copying, end, reply(OK), http(false, 'rank 1')],
      [...begun, { type: 'end' }, 'engine_failed in release', 'close'],
    ],
    [
      'it speaks otherwise when it should hold still',
      [connected, reply(LOOKED), begin, reply(Uint8Array.of(1)), http(true)],
      [
        ...begun.slice(0, 3),
        'engine_protocol in open',
        left('the reply of the worker is none of ckpt_worker', true),
      ],
    ],
    [
      'an abort before the copies, and the worker is not whole any more',
      [...toBegun, abort, reply(NO), http(true)],
      [...begun, 'aborted in undefined', left('enough', true), 'close'],
    ],
    [
      'an abort before the copies, and the answer comes before the reply',
      [...toBegun, abort, http(true), 40, reply(OK)],
      [...begun, 'aborted in undefined', left('enough', true), 'whole', 'close'],
    ],
    [
      'an abort while it is asked to hold still',
      [connected, reply(LOOKED), begin, abort, reply(OK), reply(OK), http(true)],
      [...begun.slice(0, 3), 'aborted in undefined', left('enough', true), 'whole', 'close'],
    ],
    [
      'an abort when the worker has all: its engine goes on',
      [...toBegun, copying, end, reply(OK), abort, http(true)],
      [...begun, { type: 'end' }, 'finished', 'close'],
    ],
    [
      'an abort when the worker has all, and its engine does not answer',
      [...toBegun, copying, end, reply(OK), abort, 50, 50],
      [...begun, { type: 'end' }, 'update_timeout in release', 'close'],
    ],
    [
      'it comes back after bytes were copied',
      [...toBegun, copying, disconnected, abort, connected, http(false)],
      [...begun, 'aborted in undefined', left('the update has ended', false), 'close'],
    ],
    [
      'it replies unasked',
      [...toBegun, copying, reply(OK), http(true)],
      [...begun, 'engine_protocol in transfer', left('the worker replies unasked', false), 'close'],
    ],
    [
      'it connects once more',
      [...toBegun, copying, disconnected, connected, http(true)],
      [
        ...begun,
        'engine_protocol in transfer',
        left('a worker connected again in the middle of a direct update', false),
        'close',
      ],
    ],
  ])('fails: %s', (_, events, wanted) => {
    expect(play(events)).toEqual(wanted)
  })

  const lost = "the engine's worker closed its connection in the middle of a direct update"
  test.each<[string, Event[], string]>([
    ['fails in the copies', [...toBegun, copying], 'engine_disconnected in transfer'],
    ['fails when it holds still', toBegun, 'engine_disconnected in open'],
    ['changes nothing before', toBegun.slice(0, 3), `refused: ${lost}`],
  ])('a disconnect that nothing explains for a while %s', (_, events, wanted) => {
    expect(play([...events, disconnected, 999])).not.toContain(wanted)
    const limits = { openMs: 9000, endMs: 9000, leaveMs: 50 }
    const conversation = new DirectConversation({ rank: 0, knownMap: null, limits, http: true })
    const out: DirectAction[] = []
    for (const event of [{ type: 'start' } as const, ...events, disconnected]) {
      out.push(...conversation.step({ ...event, nowMs: 0 } as DirectEvent))
    }
    const atMs = conversation.deadlineMs!
    expect(atMs).toBe(2000)
    out.push(...conversation.step({ type: 'tick', nowMs: atMs }))
    expect(words(out).at(-1)).toBe(wanted)
  })
})

test('whatever happens, it ends in time and in order', () => {
  const bodies = fc.constantFrom(LOOKED, OK, OK, NO, Uint8Array.of(1, 2, 3))
  const outside = fc.oneof(
    fc.constantFrom<Event>(connected, connected, disconnected, abort, leave),
    bodies.map(reply),
    bodies.map(reply),
    fc.boolean().map((ok) => http(ok, 'words')),
    fc.nat(300),
  )
  // a part of what goes well, and then anything
  const well: Event[] = [connected, reply(LOOKED), reply(OK), reply(OK), http(true)]
  const scripts = fc
    .tuple(fc.nat(well.length), fc.array(outside, { maxLength: 40 }))
    .map(([count, rest]) => [...well.slice(0, count), ...rest])
  let finished = 0
  fc.assert(
    fc.property(scripts, fc.boolean(), (script, http) => {
      const conversation = new DirectConversation({ rank: 0, knownMap: null, limits: LIMITS, http })
      const out: DirectAction[] = []
      let nowMs = 0
      const step = (event: Event) => {
        const actions = conversation.step({ ...event, nowMs } as DirectEvent)
        out.push(...actions)
        // as the daemon does: it goes on as soon as it may
        for (const { type } of actions) {
          if (type === 'looked') step(begin)
          if (type === 'begun') {
            step(copying)
            step(end)
          }
        }
      }
      step({ type: 'start' })
      for (const event of script) {
        if (typeof event === 'number') {
          nowMs = Math.min(nowMs + event, conversation.deadlineMs ?? nowMs)
          step({ type: 'tick' })
        } else if (event.type !== 'leave' || !['copying', 'ending'].includes(conversation.phase)) {
          step(event)
        }
      }
      for (let ticks = 0; conversation.deadlineMs !== null; ticks++) {
        expect(ticks).toBeLessThan(5)
        nowMs = Math.max(nowMs, conversation.deadlineMs)
        step({ type: 'tick' })
      }
      const types = out.map(({ type }) => type)
      const count = (type: string) => types.filter((one) => one === type).length
      expect(types.at(-1)).toBe('close')
      expect(count('close')).toBe(1)
      expect(count('finished') + count('failed')).toBeLessThanOrEqual(1)
      expect(nowMs).toBeLessThanOrEqual(LIMITS.endMs + LIMITS.leaveMs)
      for (const [before, after] of [
        ['looked', 'begun'],
        ['begun', 'finished'],
      ] as const) {
        if (count(after) > 0) expect(types.indexOf(before)).toBeLessThan(types.indexOf(after))
        expect(count(after)).toBeLessThanOrEqual(count(before))
      }
      finished += count('finished')
    }),
    { numRuns: 3000 },
  )
  // the property means something only when some do
  expect(finished).toBeGreaterThan(30)
})
