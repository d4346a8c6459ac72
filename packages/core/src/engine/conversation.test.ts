import { describe, expect, test } from 'bun:test'
import { ABORT_TEXT, Conversation } from './conversation.ts'
import type { ConversationAction, ConversationEvent, Dialect } from './conversation-types.ts'
import { type EngineMessage, readEngineMessage } from './pickle-reader.ts'
import type { FaultKind, Script, Step } from './testing/scripted-worker.ts'
import { HANDLE, LIMITS, type Performance, type Play, perform } from './testing/stage.ts'

const ABORTED = { code: 'aborted', message: 'by test' } as const
const DIALECTS: Dialect[] = ['D1', 'D2', 'D3', 'D4']

function script(dialect: Dialect, fault?: Script['fault']): Script {
  return { dialect, fault, runMs: 20, postMs: 30 }
}

function only<T extends ConversationAction['type']>(performance: Performance, type: T) {
  const found = performance.actions.filter((action) => action.type === type)
  return found as (Extract<ConversationAction, { type: T }> & { atMs: number })[]
}

function failureOf(performance: Performance) {
  const [failed] = only(performance, 'failed')
  expect(failed).toBeDefined()
  return { ...(failed as NonNullable<typeof failed>).failure, atMs: failed?.atMs as number }
}

function sent(performance: Performance): EngineMessage['type'][] {
  return only(performance, 'send').map((action) => readEngineMessage(action.body).type)
}

function closeOf(performance: Performance) {
  const [close] = only(performance, 'close')
  return close as NonNullable<typeof close>
}

describe('a conversation that goes well', () => {
  for (const dialect of DIALECTS) {
    for (const buckets of [0, 1, 5]) {
      test(`${dialect}, ${buckets} buckets`, () => {
        const performance = perform({ script: script(dialect), buckets })
        const lists = Array<'list'>(buckets).fill('list')
        expect(sent(performance)).toEqual(['handle', ...lists, 'none', 'none'])
        expect(only(performance, 'acked').map((action) => action.bucket)).toEqual([...lists.keys()])
        // no success tells D1 to D3 apart
        const [finished] = only(performance, 'finished')
        expect(finished?.dialect).toBe(dialect === 'D4' ? 'D4' : 'D3')
        expect(closeOf(performance).ringFree).toBe(true)
        expect(performance.worker.left).toBe(true)
      })
    }
  }

  test('the order of the actions', () => {
    const types = perform({ script: script('D4'), buckets: 2 }).actions.map(({ type }) => type)
    expect(types).toEqual([
      'send',
      'opened',
      'send',
      'acked',
      'send',
      'acked',
      'send',
      'send',
      'ring_free',
      'finished',
      'close',
    ])
  })

  test('a dialect that was told is kept when nothing contradicts it', () => {
    for (const remembered of ['D1', 'D2', 'D3'] as const) {
      const performance = perform({ script: script('D1'), buckets: 1, remembered })
      expect(only(performance, 'finished')[0]?.dialect).toBe(remembered)
    }
  })

  test('an engine that was upgraded or downgraded is found out', () => {
    const upgraded = perform({ script: script('D4'), buckets: 1, remembered: 'D1' })
    expect(only(upgraded, 'finished')[0]?.dialect).toBe('D4')
    const downgraded = perform({ script: script('D2'), buckets: 1, remembered: 'D4' })
    expect(only(downgraded, 'finished')[0]?.dialect).toBe('D3')
  })

  test('no HTTP request: D4 ends with its reply, D1 to D3 a moment after they have closed', () => {
    for (const dialect of DIALECTS) {
      const performance = perform({ script: script(dialect), buckets: 2, http: false })
      const [finished] = only(performance, 'finished')
      const [, , , firstNone] = only(performance, 'send')
      const waitedMs = (finished?.atMs as number) - (firstNone?.atMs as number)
      // a worker drops its mapping just after it has closed its socket
      if (dialect === 'D4') expect(waitedMs).toBeLessThan(100)
      else expect(waitedMs).toBeGreaterThanOrEqual(1000)
      expect(closeOf(performance).ringFree).toBe(true)
    }
  })
})

describe('when the ring may be freed', () => {
  /** The actions before and after it. */
  function aroundRingFree(play: Play): (string | undefined)[] {
    const { actions } = perform(play)
    const index = actions.findIndex(({ type }) => type === 'ring_free')
    return [actions[index - 1]?.type, actions[index + 1]?.type]
  }

  test('D4 that is known: with the second None, which is not kept waiting', () => {
    const play = { script: script('D4'), buckets: 1, remembered: 'D4' } as const
    expect(aroundRingFree(play)).toEqual(['send', 'finished'])
    const performance = perform(play)
    const [free] = only(performance, 'ring_free')
    const [, , , secondNone] = only(performance, 'send')
    expect(free?.atMs).toBe(secondNone?.atMs as number)
  })

  test('D4 that is not known yet: after the second reply', () => {
    const performance = perform({ script: script('D4'), buckets: 1 })
    const [free] = only(performance, 'ring_free')
    const [, , , secondNone] = only(performance, 'send')
    expect(free?.atMs).toBeGreaterThan(secondNone?.atMs as number)
    expect(free?.atMs).toBeLessThan(only(performance, 'finished')[0]?.atMs as number)
  })

  test('D1 to D3: when the HTTP request has returned', () => {
    for (const dialect of ['D1', 'D2', 'D3'] as const) {
      const play = { script: script(dialect), buckets: 1, remembered: dialect }
      expect(aroundRingFree(play)[1]).toBe('finished')
    }
  })

  test('an abort before the worker has connected: at once, though the conversation stays', () => {
    const performance = perform({ script: script('D4'), buckets: 1, connectMs: null, abortMs: 5 })
    expect(only(performance, 'ring_free')[0]?.atMs).toBe(5)
    expect(closeOf(performance).atMs).toBe(5 + LIMITS.leaveMs)
  })

  test('a worker that hangs: never; it is quarantined', () => {
    const fault = { kind: 'hang', step: 'list', bucket: 1 } as const
    const performance = perform({ script: script('D4', fault), buckets: 3 })
    expect(only(performance, 'ring_free')).toHaveLength(0)
    expect(closeOf(performance)).toMatchObject({
      ringFree: false,
      reason: "the engine's request had not returned 3 s after the failure",
    })
  })
})

interface Expected {
  readonly code: string
  readonly phase: string
  readonly message: RegExp
}

/** What the report must say of each fault; D1 has no words of its own, only the HTTP result has. */
function expected(dialect: Dialect, kind: FaultKind, step: Step): Expected {
  const afterFirstNone = dialect === 'D4' && step === 'post' ? 'post' : 'release'
  const phases = { handle: 'open', list: 'transfer', release: 'release', post: afterFirstNone }
  const phase = phases[step]
  if (kind === 'close') return { code: 'engine_unreachable', phase, message: /the process died/ }
  if (kind === 'hang') {
    const messages = {
      handle: /has connected but has not replied to the handle within 5 s/,
      list: /has not replied to the tensor list of bucket 1 within 2 s/,
      release: /the update's timeout has passed: .* first None/,
      post: /the update's timeout has passed: .*post hook/,
    }
    const code = step === 'handle' || step === 'list' ? 'engine_timeout' : 'update_timeout'
    return { code, phase, message: messages[step] }
  }
  if (step === 'release')
    return { code: 'engine_failed', phase, message: /answered 500: (release|post_hook) failed/ }
  if (step === 'post')
    return { code: 'engine_failed', phase, message: /answered 500: post_hook failed/ }
  if (dialect === 'D1') {
    const message =
      step === 'handle' ? /answered 500: AssertionError/ : /answered 500: load_weights failed/
    return { code: 'engine_failed', phase, message }
  }
  const where = step === 'handle' ? 'while it mapped the ring' : 'in bucket 1'
  const words = dialect === 'D2' ? '5 opaque bytes' : 'Traceback[^]*RuntimeError: '
  return { code: 'engine_failed', phase, message: new RegExp(`failed ${where}: ${words}`) }
}

describe('a fault at each step', () => {
  for (const dialect of DIALECTS) {
    for (const kind of ['error', 'hang', 'close'] as const) {
      for (const step of ['handle', 'list', 'release', 'post'] as const) {
        test(`${dialect} ${kind} at ${step}`, () => {
          const fault = step === 'list' ? { kind, step, bucket: 1 } : { kind, step }
          // one of D1 says nothing and stays connected: only who knows it takes the answer's word
          const remembered = dialect === 'D1' ? 'D1' : undefined
          const performance = perform({ script: script(dialect, fault), buckets: 3, remembered })
          const failure = failureOf(performance)
          const want = expected(dialect, kind, step)
          expect(failure).toMatchObject({ code: want.code, phase: want.phase, rank: 3 })
          expect(failure.message).toMatch(want.message)
          expect(only(performance, 'finished')).toHaveLength(0)
          expect(only(performance, 'acked').length).toBe(
            step === 'handle' ? 0 : step === 'list' ? 1 : 3,
          )
          // it hangs in the engine's own code or it has left
          expect(performance.worker.left).toBe(kind !== 'hang')
          const ringFree = kind !== 'hang'
          expect(closeOf(performance).ringFree).toBe(ringFree)
          expect(closeOf(performance).atMs).toBeLessThanOrEqual(LIMITS.totalMs + LIMITS.leaveMs)
        })
      }
    }
  }

  test('a hook that SGLang swallows is a success here: its adapter checks the weights', () => {
    const fault = { kind: 'swallow', step: 'post' } as const
    const performance = perform({ script: script('D1', fault), buckets: 1 })
    expect(only(performance, 'finished')).toHaveLength(1)
  })

  test('without HTTP, a closed connection is all there is', () => {
    const where = {
      handle: 'while it mapped the ring',
      list: 'in bucket 0',
      release: 'while it released the ring',
    }
    for (const step of ['handle', 'list', 'release'] as const) {
      const fault = step === 'list' ? { kind: 'close', step, bucket: 0 } : { kind: 'close', step }
      const play = { script: script('D4', fault as Script['fault']), buckets: 2, http: false }
      const performance = perform(play)
      expect(failureOf(performance)).toMatchObject({
        code: 'engine_disconnected',
        message: `the engine's worker closed its connection ${where[step]}`,
      })
      expect(only(performance, 'finished')).toHaveLength(0)
      expect(failureOf(performance).atMs).toBeLessThan(200)
      expect(closeOf(performance).ringFree).toBe(true)
    }
  })

  test('an error reply tells the dialect, unless it is known to be D4', () => {
    for (const step of ['handle', 'list'] as const) {
      const fault =
        step === 'list'
          ? ({ kind: 'error', step, bucket: 1 } as const)
          : ({ kind: 'error', step } as const)
      const learned = (dialect: Dialect, remembered?: Dialect) =>
        perform({ script: script(dialect, fault), buckets: 3, remembered }).conversation.dialect
      expect(learned('D2')).toBe('D2')
      expect(learned('D2', 'D4')).toBe('D2')
      expect(learned('D3')).toBe('D3')
      expect(learned('D3', 'D1')).toBe('D3')
      expect(learned('D4', 'D4')).toBe('D4')
    }
  })

  test('without HTTP, D4 that is known and closes in its post hook has failed', () => {
    const fault = { kind: 'error', step: 'post' } as const
    const play = { script: script('D4', fault), buckets: 1, http: false, remembered: 'D4' } as const
    expect(failureOf(perform(play)).message).toContain('without a reply to the second None')
  })

  test('D4 that is known and closes in its post hook is not taken for an older one', () => {
    const fault = { kind: 'error', step: 'post' } as const
    const { conversation } = perform({ script: script('D4', fault), buckets: 1, remembered: 'D4' })
    expect(conversation.dialect).toBe('D4')
  })

  test('a disconnect that no HTTP result explains is reported after two seconds', () => {
    const fault = { kind: 'close', step: 'list', bucket: 1 } as const
    const play = {
      script: script('D3', fault),
      buckets: 3,
      answer: { atMs: 1e5, status: 500, message: '' },
    }
    const failure = failureOf(perform(play))
    expect(failure).toMatchObject({ code: 'engine_disconnected', phase: 'transfer' })
    expect(failure.message).toBe("the engine's worker closed its connection in bucket 1")
    expect(failure.atMs).toBeLessThan(2200)
  })
})

describe('the HTTP request returns early', () => {
  const early = (
    status: number,
    atMs: number,
    connectMs: number | null,
    message = 'no such method',
  ) => perform({ script: script('D4'), buckets: 3, connectMs, answer: { atMs, status, message } })

  test('an error before the worker has connected', () => {
    const performance = early(404, 50, null)
    expect(failureOf(performance)).toMatchObject({
      code: 'engine_failed',
      phase: 'open',
      message: 'the engine answered 404 before its worker had connected: no such method',
      atMs: 50,
    })
    expect(closeOf(performance)).toMatchObject({ atMs: 50, ringFree: true })
  })

  test('no connection to the engine at all', () => {
    expect(failureOf(early(0, 1, null, 'connection refused'))).toMatchObject({
      code: 'engine_unreachable',
      message: "the engine's request failed before its worker had connected: connection refused",
    })
  })

  test('a success before the worker has connected, and in the middle', () => {
    expect(failureOf(early(200, 50, null))).toMatchObject({
      code: 'engine_protocol',
      message: 'the engine answered 200 before its worker had connected',
    })
    const middle = early(200, 40, 10)
    expect(failureOf(middle)).toMatchObject({
      code: 'engine_protocol',
      phase: 'transfer',
      message: 'the engine answered 200 before its worker had taken all weights',
    })
    expect(sent(middle).at(-1)).toBe('error')
  })

  test('an error in the middle: the worker that is still there is told to stop', () => {
    const performance = early(500, 40, 10, 'RPC timed out')
    expect(failureOf(performance)).toMatchObject({
      code: 'engine_failed',
      message: 'the engine answered 500: RPC timed out',
    })
    expect(sent(performance).at(-1)).toBe('error')
    expect(performance.worker.left).toBe(true)
  })

  /** One list is out when the request returns; the worker is still in `load_weights`. */
  function insideRun(status: number, dialect?: Dialect) {
    const conversation = new Conversation({
      handle: HANDLE,
      rank: 0,
      limits: LIMITS,
      http: true,
      ...(dialect === undefined ? {} : { dialect }),
    })
    const step = (event: ConversationEvent) => conversation.step(event)
    step({ type: 'start', nowMs: 0 })
    step({ type: 'connected', nowMs: 1 })
    step({ type: 'reply', body: EMPTY, nowMs: 2 })
    step({ type: 'announce', bucket: 0, list: Uint8Array.of(0x80, 4, 0x5d, 0x2e), nowMs: 3 })
    const actions = step({ type: 'http', ok: false, status, message: 'words', nowMs: 10 })
    return { conversation, step, types: actions.map(({ type }) => type) }
  }

  const ANSWERS = [0, 408, 500, 502, 503, 504]

  test('a failure elsewhere: the ring stays until the worker has replied or closed', () => {
    for (const status of ANSWERS) {
      for (const end of ['reply', 'disconnected'] as const) {
        const { conversation, step, types } = insideRun(status)
        expect(types).toEqual(['send', 'failed'])
        expect(conversation.worker).toEqual({ connected: true, owes: true })
        const last = end === 'reply' ? { type: end, body: EMPTY } : { type: end }
        expect(step({ ...last, nowMs: 900 })).toEqual([
          { type: 'ring_free' },
          { type: 'close', ringFree: true },
        ])
      }
    }
  })

  test('one that neither replies nor closes is quarantined at the leave deadline, and why is said', () => {
    const { conversation, step } = insideRun(504)
    const nowMs = conversation.deadlineMs as number
    expect(nowMs).toBe(3 + LIMITS.replyMs + LIMITS.leaveMs)
    const reason = "the engine's worker had not left 3 s after the failure"
    expect(step({ type: 'tick', nowMs })).toEqual([{ type: 'close', ringFree: false, reason }])
  })

  test('D1, which stays connected and says nothing: an answer of its own counts, a proxy says nothing', () => {
    for (const status of ANSWERS) {
      const { types } = insideRun(status, 'D1')
      expect(types.includes('ring_free')).toBe(status === 500)
    }
  })

  test('a success that overtakes the reply to the first None is one', () => {
    const { conversation, step } = released()
    step({ type: 'http', ok: true, status: 200, message: '', nowMs: 50 })
    step({ type: 'disconnected', nowMs: 51 })
    expect(step({ type: 'reply', body: EMPTY, nowMs: 52 })).toEqual([
      { type: 'ring_free' },
      { type: 'finished', dialect: 'D3' },
      { type: 'close', ringFree: true },
    ])
    expect(conversation.phase).toBe('closed')
  })

  test('a success, then the reply: the second None is sent, and waited for a moment only', () => {
    const { conversation, step } = released()
    step({ type: 'http', ok: true, status: 200, message: '', nowMs: 50 })
    expect(step({ type: 'reply', body: EMPTY, nowMs: 52 }).map(({ type }) => type)).toEqual([
      'send',
    ])
    expect(conversation.deadlineMs).toBe(302)
    const end = step({ type: 'tick', nowMs: 302 })
    expect(end).toContainEqual({ type: 'finished', dialect: 'D3' })
  })

  test('a disconnect that overtakes the reply to the first None is forgotten', () => {
    const { conversation, step } = released()
    step({ type: 'disconnected', nowMs: 50 })
    expect(conversation.deadlineMs).toBe(2050)
    step({ type: 'reply', body: EMPTY, nowMs: 51 })
    expect(step({ type: 'tick', nowMs: 2100 })).toEqual([])
    const end = step({ type: 'http', ok: true, status: 200, message: '', nowMs: 2200 })
    expect(end).toContainEqual({ type: 'finished', dialect: 'D3' })
  })

  test('a failure of the post hook: what it reads is its own, so the ring goes at once', () => {
    const { step } = released()
    step({ type: 'reply', body: EMPTY, nowMs: 40 })
    const actions = step({ type: 'http', ok: false, status: 500, message: 'words', nowMs: 50 })
    expect(actions.map(({ type }) => type)).toEqual(['failed', 'ring_free', 'close'])
  })

  test('an error in reply to the second None names the post hook', () => {
    const { step } = released()
    step({ type: 'reply', body: EMPTY, nowMs: 40 })
    const body = new TextEncoder().encode('RuntimeError: words')
    const actions = step({ type: 'reply', body, nowMs: 50 })
    expect(actions.find(({ type }) => type === 'failed')).toMatchObject({
      failure: {
        code: 'engine_failed',
        phase: 'post',
        message: "the engine's worker failed in its post hook: RuntimeError: words",
      },
    })
  })

  test('a success without that reply is a failure after two seconds', () => {
    const { conversation, step } = released()
    step({ type: 'http', ok: true, status: 200, message: '', nowMs: 50 })
    expect(conversation.deadlineMs).toBe(2050)
    expect(step({ type: 'tick', nowMs: 2049 })).toEqual([])
    expect(step({ type: 'tick', nowMs: 2050 }).find(({ type }) => type === 'failed')).toMatchObject(
      {
        failure: {
          code: 'engine_protocol',
          phase: 'release',
          message: "the engine answered 200 without its worker's reply to the first None",
        },
      },
    )
  })

  test('a success that overtakes the second reply waits a moment for the dialect', () => {
    for (const [seen, dialect] of [
      ['reply', 'D4'],
      ['disconnected', 'D3'],
      ['tick', 'D3'],
    ] as const) {
      const { step } = released()
      step({ type: 'reply', body: EMPTY, nowMs: 40 })
      expect(step({ type: 'http', ok: true, status: 200, message: '', nowMs: 50 })).toEqual([])
      const event =
        seen === 'reply'
          ? ({ type: 'reply', body: EMPTY, nowMs: 60 } as const)
          : ({ type: seen, nowMs: seen === 'tick' ? 300 : 60 } as const)
      expect(step(event)).toContainEqual({ type: 'finished', dialect })
    }
  })

  test('that a worker has left is known before its request returns', () => {
    for (const end of ['reply', 'disconnected'] as const) {
      const { conversation, step } = released()
      expect(conversation.hasLeft).toBe(false)
      step({ type: 'reply', body: EMPTY, nowMs: 40 })
      expect(conversation.hasLeft).toBe(false)
      step(end === 'reply' ? { type: end, body: EMPTY, nowMs: 50 } : { type: end, nowMs: 50 })
      expect(conversation.hasLeft).toBe(true)
      step({ type: 'abort', failure: ABORTED, nowMs: 60 })
      expect(conversation.hasLeft).toBe(false)
    }
  })

  test('of a worker whose dialect is known nothing is waited for', () => {
    for (const dialect of DIALECTS) {
      const { step } = released({ dialect })
      step({ type: 'reply', body: EMPTY, nowMs: 40 })
      const end = step({ type: 'http', ok: true, status: 200, message: '', nowMs: 50 })
      expect(end).toContainEqual({ type: 'finished', dialect })
    }
  })
})

const EMPTY = new Uint8Array(0)

/** A conversation without buckets whose first None has been sent. */
function released(told: { readonly http?: boolean; readonly dialect?: Dialect } = {}) {
  const options = { handle: HANDLE, rank: 3, limits: LIMITS, http: true, ...told }
  const conversation = new Conversation(options)
  const step = (event: ConversationEvent) => conversation.step(event)
  step({ type: 'start', nowMs: 0 })
  step({ type: 'end', nowMs: 1 })
  step({ type: 'connected', nowMs: 10 })
  step({ type: 'reply', body: EMPTY, nowMs: 20 })
  expect(conversation.phase).toBe('release')
  return { conversation, step }
}

describe('what no worker should do', () => {
  test('a reply that nothing asked for', () => {
    const conversation = new Conversation({ handle: HANDLE, rank: 3, limits: LIMITS, http: true })
    conversation.step({ type: 'start', nowMs: 0 })
    conversation.step({ type: 'connected', nowMs: 10 })
    conversation.step({ type: 'reply', body: EMPTY, nowMs: 20 })
    const actions = conversation.step({ type: 'reply', body: EMPTY, nowMs: 21 })
    expect(actions.find(({ type }) => type === 'failed')).toMatchObject({
      failure: {
        code: 'engine_protocol',
        message: "the engine's worker sent a reply that nothing asked for",
      },
    })
  })

  test('a second worker at the same address, as SGLang with a draft model has', () => {
    const { step } = released()
    step({ type: 'reply', body: EMPTY, nowMs: 30 })
    step({ type: 'disconnected', nowMs: 31 })
    const actions = step({ type: 'connected', nowMs: 40 })
    expect(actions.map(({ type }) => type)).toEqual(['send', 'send', 'failed'])
    expect(actions[2]).toMatchObject({ failure: { code: 'not_supported', phase: 'post' } })
  })

  test('a second worker without HTTP: it stays until that one has left too', () => {
    const { conversation, step } = released({ http: false })
    step({ type: 'reply', body: EMPTY, nowMs: 30 })
    step({ type: 'disconnected', nowMs: 31 })
    expect(conversation.deadlineMs).toBe(1031)
    step({ type: 'connected', nowMs: 40 })
    expect(conversation.deadlineMs).toBe(40 + LIMITS.leaveMs)
    step({ type: 'disconnected', nowMs: 50 })
    expect(step({ type: 'tick', nowMs: 1050 })).toEqual([
      { type: 'ring_free' },
      { type: 'close', ringFree: true },
    ])
  })

  test('a reply after the last one, while the request has not returned', () => {
    const { step } = released()
    step({ type: 'reply', body: EMPTY, nowMs: 30 })
    step({ type: 'reply', body: EMPTY, nowMs: 40 })
    expect(step({ type: 'reply', body: EMPTY, nowMs: 41 })).toEqual([])
    const end = step({ type: 'http', ok: true, status: 200, message: '', nowMs: 50 })
    expect(end).toContainEqual({ type: 'finished', dialect: 'D4' })
  })

  test('a worker that closes before it has replied to the handle, and one that takes its place', () => {
    const conversation = new Conversation({ handle: HANDLE, rank: 3, limits: LIMITS, http: true })
    conversation.step({ type: 'start', nowMs: 0 })
    conversation.step({ type: 'connected', nowMs: 10 })
    conversation.step({ type: 'disconnected', nowMs: 20 })
    expect(conversation.deadlineMs).toBe(2020)
    expect(conversation.step({ type: 'connected', nowMs: 30 })).toEqual([
      { type: 'send', body: HANDLE },
    ])
    expect(conversation.deadlineMs).toBe(LIMITS.openMs)
  })

  test('a list is not sent to a worker that has not mapped the ring', () => {
    const conversation = new Conversation({ handle: HANDLE, rank: 3, limits: LIMITS, http: true })
    conversation.step({ type: 'start', nowMs: 0 })
    conversation.step({ type: 'connected', nowMs: 10 })
    conversation.step({ type: 'reply', body: EMPTY, nowMs: 20 })
    conversation.step({ type: 'disconnected', nowMs: 30 })
    conversation.step({ type: 'connected', nowMs: 40 })
    const announce = { type: 'announce', bucket: 0, list: EMPTY, nowMs: 50 } as const
    expect(conversation.step(announce)).toEqual([])
  })
})

describe('an abort', () => {
  test('at every moment of a conversation: the worker is told and leaves, nothing is acked afterwards', () => {
    for (const dialect of DIALECTS) {
      for (let abortMs = 1; abortMs < 250; abortMs += 3) {
        const performance = perform({ script: script(dialect), buckets: 4, abortMs })
        const failed = performance.actions.findIndex(({ type }) => type === 'failed')
        if (failed < 0) {
          expect(only(performance, 'finished')).toHaveLength(1)
          continue
        }
        const after = performance.actions.slice(failed + 1).map(({ type }) => type)
        expect(after).not.toContain('acked')
        expect(after).not.toContain('finished')
        expect(performance.worker.left).toBe(true)
        expect(closeOf(performance).ringFree).toBe(true)
      }
    }
  })

  test('the text is the one that engines know from checkpoint-engine', () => {
    const performance = perform({ script: script('D4'), buckets: 4, abortMs: 40 })
    const last = only(performance, 'send').at(-1)
    expect(readEngineMessage(last?.body as Uint8Array)).toEqual({ type: 'error', text: ABORT_TEXT })
    expect(ABORT_TEXT).toBe('Some workers failed to update weights')
  })

  test('twice to a worker that has not mapped the ring, once to one that has', () => {
    const count = (play: Play) => sent(perform(play)).filter((type) => type === 'error').length
    const hang = { kind: 'hang', step: 'handle' } as const
    expect(count({ script: script('D4', hang), buckets: 1, abortMs: 40 })).toBe(2)
    expect(count({ script: script('D4'), buckets: 9, abortMs: 40 })).toBe(1)
  })

  test('a worker that connects only afterwards is told too, and never gets the handle', () => {
    for (const dialect of DIALECTS) {
      const performance = perform({
        script: script(dialect),
        buckets: 2,
        connectMs: 500,
        abortMs: 40,
      })
      expect(sent(performance)).toEqual(['error', 'error'])
      expect(performance.worker.left).toBe(true)
      expect(closeOf(performance)).toMatchObject({ ringFree: true })
      expect(closeOf(performance).atMs).toBeLessThan(600)
    }
  })

  test('a worker inside run leaves when run returns: the leave deadline counts from then', () => {
    const slow = { ...script('D4'), runMs: 1900 }
    const limits = { leaveMs: 100 }
    const performance = perform({ script: slow, buckets: 3, abortMs: 100, limits })
    expect(failureOf(performance).atMs).toBe(100)
    expect(performance.worker.left).toBe(true)
    expect(closeOf(performance)).toMatchObject({ ringFree: true })
    expect(closeOf(performance).atMs).toBeGreaterThan(1900)
  })

  test('a worker whose run never returns is left after the reply deadline', () => {
    const fault = { kind: 'hang', step: 'list', bucket: 0 } as const
    const performance = perform({ script: script('D4', fault), buckets: 3, abortMs: 100 })
    expect(closeOf(performance).ringFree).toBe(false)
    expect(closeOf(performance).atMs).toBeLessThanOrEqual(12 + LIMITS.replyMs + LIMITS.leaveMs)
  })

  /** A worker has been inside `run` since 100 ms, and told to raise at 200 ms. */
  function abortedInsideRun() {
    const conversation = new Conversation({ handle: HANDLE, rank: 3, limits: LIMITS, http: true })
    const step = (event: ConversationEvent) => conversation.step(event)
    step({ type: 'start', nowMs: 0 })
    step({ type: 'connected', nowMs: 10 })
    step({ type: 'reply', body: EMPTY, nowMs: 20 })
    step({ type: 'announce', bucket: 0, list: EMPTY, nowMs: 100 })
    step({ type: 'abort', failure: ABORTED, nowMs: 200 })
    expect(conversation.deadlineMs).toBe(100 + LIMITS.replyMs + LIMITS.leaveMs)
    return { conversation, step }
  }

  test('a worker whose run returns in time but which does not leave has the leave deadline', () => {
    const { conversation, step } = abortedInsideRun()
    step({ type: 'reply', body: EMPTY, nowMs: 300 })
    expect(conversation.deadlineMs).toBe(300 + LIMITS.leaveMs)
    // an executor that has not heard of it yet
    expect(step({ type: 'announce', bucket: 1, list: EMPTY, nowMs: 301 })).toEqual([])
    expect(step({ type: 'announce', bucket: 2, list: EMPTY, nowMs: 302 })).toEqual([])
    expect(step({ type: 'end', nowMs: 303 })).toEqual([])
    expect(step({ type: 'tick', nowMs: 300 + LIMITS.leaveMs })).toMatchObject([
      { type: 'close', ringFree: false },
    ])
  })

  test('one that closes out of run: the request has the leave deadline from then', () => {
    const { conversation, step } = abortedInsideRun()
    step({ type: 'disconnected', nowMs: 300 })
    expect(conversation.deadlineMs).toBe(300 + LIMITS.leaveMs)
  })

  test('one that takes its place owes nothing: it was given nothing', () => {
    const { conversation, step } = abortedInsideRun()
    step({ type: 'disconnected', nowMs: 300 })
    step({ type: 'connected', nowMs: 310 })
    expect(conversation.worker).toEqual({ connected: true, owes: false })
    expect(step({ type: 'http', ok: false, status: 500, message: 'words', nowMs: 320 })).toEqual([
      { type: 'ring_free' },
      { type: 'close', ringFree: true },
    ])
  })

  test('after the worker has closed its connection: the leave deadline holds, no other', () => {
    const { conversation, step } = released()
    step({ type: 'disconnected', nowMs: 50 })
    expect(conversation.deadlineMs).toBe(2050)
    step({ type: 'abort', failure: ABORTED, nowMs: 60 })
    expect(conversation.deadlineMs).toBe(60 + LIMITS.leaveMs)
  })

  test('that no worker ever comes to hear is said', () => {
    const play = { script: script('D4'), buckets: 1, http: false, connectMs: null, abortMs: 5 }
    expect(closeOf(perform(play))).toMatchObject({
      ringFree: true,
      reason: 'no worker connected within 3 s after the failure',
    })
  })

  test('while the post hook runs: the second None was the last word', () => {
    const slow = { ...script('D4'), postMs: 500 }
    const performance = perform({ script: slow, buckets: 1, abortMs: 200 })
    expect(sent(performance).at(-1)).toBe('none')
    expect(failureOf(performance).code).toBe('aborted')
    expect(closeOf(performance).ringFree).toBe(true)
  })
})

describe('deadlines', () => {
  test('no worker connects', () => {
    const performance = perform({ script: script('D4'), buckets: 1, connectMs: null })
    expect(failureOf(performance)).toMatchObject({
      code: 'engine_timeout',
      phase: 'open',
      message: 'no worker of the engine has connected within 5 s',
      atMs: LIMITS.openMs,
    })
    expect(performance.conversation.everConnected).toBe(false)
  })

  test('the copies take longer than the update may', () => {
    const performance = perform({
      script: script('D4'),
      buckets: 1000,
      limits: { totalMs: 1000 },
    })
    expect(failureOf(performance)).toMatchObject({ code: 'update_timeout', atMs: 1000 })
  })

  test('the request does not return though the worker has left: it may wait for other workers', () => {
    const performance = perform({
      script: script('D4'),
      buckets: 1,
      answer: { atMs: 15_000, status: 200, message: '' },
    })
    expect(only(performance, 'finished')[0]?.atMs).toBe(15_000)
    const never = perform({
      script: script('D4'),
      buckets: 1,
      answer: { atMs: 1e6, status: 200, message: '' },
    })
    expect(failureOf(never)).toMatchObject({
      code: 'update_timeout',
      phase: 'post',
      message:
        "the update's timeout has passed: the engine's request has not returned, though its worker has left",
    })
    expect(closeOf(never).ringFree).toBe(true)
  })
})
