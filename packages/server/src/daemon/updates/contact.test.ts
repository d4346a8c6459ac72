import { expect, test } from 'bun:test'
import type { EngineHost } from '../../engines/host.ts'
import type { RankInfo } from '../types.ts'
import { EngineContact } from './contact.ts'
import { EngineBook } from './engines.ts'
import type { Journal } from './journal.ts'
import type { EngineSpec, UpdateSpec } from './spec.ts'

const RANK: RankInfo = { rank: 0, device: 0, deviceName: '', key: 'a', uuid: 'a', numaNode: -1 }
const SPEC: EngineSpec = {
  key: 'engine',
  url: 'http://engine',
  uds: null,
  kind: 'vllm',
  ranks: [0],
  node: 0,
}
const TORN = { ok: false, error: 'its memory', torn: true }

/** Its worker says that it is torn, whatever is asked. */
const TORN_ENGINE: EngineHost = {
  call: async () => ({ status: 200, text: JSON.stringify({ results: [TORN] }) }),
  listener: async () => null,
}

// the update that never came to it would be looked into for what another one has done
test('an engine that an earlier update has torn is not said to be torn by one that has told it nothing', async () => {
  const journal = { engines: async () => {} } as unknown as Journal
  const record = new EngineBook(journal).record(SPEC)
  const { signal } = new AbortController()
  const contact = async () => {
    const one = new EngineContact(SPEC, [RANK], record, TORN_ENGINE)
    await one.ready(0, signal)
    const update = { method: 'm', weightVersion: null } as UpdateSpec
    await one.post({}, update, 1, signal, true)
    return one
  }
  const fate = { finished: false, released: false, version: null, dialect: null }
  await (await contact()).fail('first', { ...fate, touched: true }, signal)
  await (await contact()).giveUpDirect('second', false, signal)
  await (await contact()).fail('third', { ...fate, touched: false }, signal)
  expect(record.tornBy).toBe('first')
  await (await contact()).giveUpDirect('fourth', true, signal)
  expect(record.tornBy).toBe('fourth')
})

test('an engine that was not ready in time is told of by what it said, not by a last look that had no time left', async () => {
  const record = new EngineBook({ engines: async () => {} } as unknown as Journal).record(SPEC)
  let looks = 0
  const loading: EngineHost = {
    call: async (_, signal) => {
      if (++looks === 1) return { status: 503, text: 'the model is being loaded' }
      return await new Promise<never>((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason))
      })
    },
    listener: async () => null,
  }
  const contact = new EngineContact(SPEC, [RANK], record, loading)
  // the second look comes 200 ms after the first, and a third one where a timer is early
  const ready = contact.ready(260, new AbortController().signal)
  await expect(ready).rejects.toThrow(
    /not ready within 0.3 s: \/health answered 503: the model is being loaded$/,
  )
  expect(looks).toBeGreaterThan(1)
})
