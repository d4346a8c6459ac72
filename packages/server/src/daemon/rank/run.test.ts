import { expect, setDefaultTimeout, test } from 'bun:test'
import { NativeError, STATUS_ERR_STATE, STATUS_ERR_TIMEOUT } from '@ckpt/cuda'
import {
  abort,
  goodOrder,
  http,
  type OneRank,
  RING_BYTES,
  RUN,
  withOneRank,
} from './testing/one-rank.ts'

setDefaultTimeout(120_000)

/** One more than the ring holds. */
const BUCKETS = 5
const TRACEBACK = new TextEncoder().encode('Traceback\nRuntimeError: words of the worker\n')
/** Turns of the loop between the moment at which every rank has its abort bit and the message. */
const TURNS_BEFORE_MESSAGE = 4
const STEPS_MAX = 500

test('an update in good order leaves nothing', () => {
  withOneRank({ buckets: BUCKETS, http: true }, (scene) => {
    scene.run(goodOrder())
    const lists = Array<'list'>(BUCKETS).fill('list')
    expect(scene.worker.seen).toEqual(['handle', ...lists, 'none', 'none'])
    expect(scene.event('finished').dialect).toBe('D4')
    expect(scene.event('closed')).toMatchObject({ quarantinedBytes: 0, settled: true })
    expect(scene.kept).toEqual([])
  })
})

/** Raises the abort bit after the native call with this number; false when the run has fewer. */
function abortAfterCall(step: number): boolean {
  let calls = 0
  let sentBefore: number | null = null
  const around = (name: string, call: () => unknown, scene: OneRank) => {
    const result = call()
    // what is asked in every turn until it is so is a step when it is
    const isStep = !name.startsWith('signal') && !(name === 'eventQuery' && result === false)
    if (isStep && ++calls === step) {
      sentBefore = scene.sent
      scene.raiseAbort()
    }
    return result
  }
  withOneRank({ buckets: BUCKETS, http: true, around }, (scene) => {
    let turns = 0
    const good = goodOrder()
    scene.run((now) => {
      const messages = good(now)
      if (sentBefore !== null && ++turns === TURNS_BEFORE_MESSAGE) messages.push(abort())
      return messages
    })
    if (sentBefore === null) return
    expect(scene.sent).toBe(sentBefore)
    const lists = scene.worker.seen.filter((type) => type === 'list')
    expect(lists.length).toBeLessThanOrEqual(sentBefore)
  })
  return sentBefore !== null
}

test('no list is announced after the abort bit, whatever native call it follows', () => {
  let steps = 0
  while (steps < STEPS_MAX && abortAfterCall(steps + 1)) steps++
  // a copy, a record, a notification, a completion and more of every bucket
  expect(steps).toBeGreaterThan(4 * BUCKETS)
  expect(steps).toBeLessThan(STEPS_MAX)
})

test('a worker is told to raise before its group is ended, and a group that does not end in time keeps the ring', () => {
  let seenAtEnd: string[] | null = null
  const around = (name: string, call: () => unknown, { worker }: OneRank) => {
    if (name !== 'groupAbort') return call()
    worker.wait()
    seenAtEnd = [...worker.seen]
    call()
    throw new NativeError('ckpt_group_abort', STATUS_ERR_TIMEOUT, 'the group did not end in time')
  }
  withOneRank({ buckets: BUCKETS, http: true, ranks: 2, around }, (scene) => {
    let turn = 0
    scene.run(({ worker }) => {
      if (worker.take() === 'handle') worker.reply()
      if (!scene.has('opened')) return []
      turn++
      if (turn === 1) return [abort()]
      worker.close()
      return turn === 2 ? [http(500)] : []
    })
    expect(seenAtEnd as unknown).toEqual(['handle', 'error'])
    expect(scene.event('closed')).toMatchObject({ quarantinedBytes: RING_BYTES, settled: false })
    expect(scene.kept).toMatchObject([{ read: false, settled: false }])
  })
})

test('after an abort a worker has the whole time that it was given to leave, whatever the copies say', () => {
  withOneRank({ buckets: BUCKETS, http: true, ranks: 2 }, (scene) => {
    let abortedMs = 0
    let answered = false
    scene.run(({ worker }) => {
      if (worker.take() === 'handle') worker.reply()
      if (!scene.has('opened')) return []
      const nowMs = performance.now()
      if (abortedMs === 0) {
        abortedMs = nowMs
        return [abort()]
      }
      if (answered || nowMs < abortedMs + 1500) return []
      answered = true
      worker.close()
      return [http(500)]
    })
    expect(scene.worker.seen).toEqual(['handle', 'error'])
    expect(scene.event('closed')).toMatchObject({ quarantinedBytes: 0, settled: true })
  })
})

test('what the library says of a copy names the rank, and the engine that waits for it is told', () => {
  const around = (name: string, call: () => unknown) => {
    if (name !== 'copyH2d') return call()
    throw new NativeError('ckpt_copy_h2d', STATUS_ERR_STATE, 'words of the library')
  }
  withOneRank({ buckets: BUCKETS, http: true, around }, (scene) => {
    const good = goodOrder()
    let aborted = false
    scene.run((now) => {
      const messages = good(now)
      if (scene.has('failed') && !aborted) {
        aborted = true
        messages.push(abort())
      }
      return messages
    })
    const { failure } = scene.event('failed')
    expect(failure).toMatchObject({ code: 'internal', rank: 0, phase: 'open' })
    expect(failure.message).toBe('words of the library')
    // it came to a rank that had failed already, and was given nothing
    expect(scene.worker.seen).toEqual(['error'])
    expect(scene.event('closed')).toMatchObject({ quarantinedBytes: 0, settled: true })
  })
})

test('no list is sent before every engine worker has mapped its ring, though buckets are complete', () => {
  // the other rank has its bytes, but no worker yet
  const around = (name: string, call: () => unknown) =>
    name === 'groupBroadcast' ? undefined : call()
  withOneRank({ buckets: BUCKETS, http: true, ranks: 2, around }, (scene) => {
    const good = goodOrder()
    let turns = 0
    scene.run((now) => {
      const messages = good(now).filter(({ type }) => type !== 'announce')
      if (scene.has('opened') && ++turns === 100) messages.push(abort())
      return messages
    })
    expect(turns).toBeGreaterThanOrEqual(100)
    expect(scene.worker.seen).toEqual(['handle', 'error'])
    expect(scene.sent).toBe(0)
  })
})

test('a rank that is alone waits for no other', () => {
  withOneRank({ buckets: BUCKETS, http: true }, (scene) => {
    const good = goodOrder()
    scene.run((now) => good(now).filter(({ type }) => type !== 'announce'))
    expect(scene.sent).toBe(BUCKETS)
    expect(scene.has('finished')).toBe(true)
  })
})

for (const ranks of [1, 2]) {
  const filled =
    ranks === 1 ? 'has filled its ring' : 'has copied nothing before its group is there'
  test(`before its run begins a rank of ${ranks} ${filled}, and leaves nothing when it never does`, () => {
    let copies = 0
    const around = (name: string, call: () => unknown) => {
      if (name === 'copyH2d') copies++
      return call()
    }
    withOneRank({ buckets: BUCKETS, http: true, ranks, around }, (scene) => {
      const run = scene.open()
      expect(copies).toBe(ranks === 1 ? 4 : 0)
      run.close()
      expect(scene.event('closed')).toMatchObject({ quarantinedBytes: 0, settled: true })
      expect(scene.sent).toBe(0)
    })
  })
}

for (const started of [true, false]) {
  const before = started ? 'its engine answers' : 'it closes its connection'
  test(`what a worker says before ${before} is what the update says`, () => {
    withOneRank({ buckets: 1, http: started }, (scene) => {
      let aborted = false
      scene.run(({ worker }) => {
        const type = worker.take()
        if (scene.has('failed')) {
          if (aborted) return []
          aborted = true
          return [abort()]
        }
        if (type === 'handle') {
          worker.reply()
          return [{ type: 'announce', run: RUN }]
        }
        if (type !== 'list') return []
        worker.reply(TRACEBACK)
        if (!started) worker.close()
        // both are there when the run looks
        Bun.sleepSync(100)
        return started ? [http(500)] : []
      })
      const { failure } = scene.event('failed')
      expect(failure).toMatchObject({ code: 'engine_failed', phase: 'transfer', rank: 0 })
      expect(failure.message).toContain('RuntimeError: words of the worker')
    })
  })
}
