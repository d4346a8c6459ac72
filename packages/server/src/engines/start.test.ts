import { expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import { EngineClient, reasonOf } from './client.ts'
import type { EngineHost } from './host.ts'
import { engineStart } from './start.ts'

test('a host that does not answer keeps nobody longer than the signal says', async () => {
  const host: EngineHost = {
    call: (_, signal) => Promise.reject(reasonOf(signal)),
    listener: () => new Promise(() => {}),
  }
  const client = new EngineClient({ url: 'http://127.0.0.1:1', uds: null }, host)
  const controller = new AbortController()
  const told = engineStart(client, controller.signal)
  controller.abort(new CkptError('engine_timeout', 'too late'))
  expect(await told).toBeNull()
  expect(await engineStart(client, controller.signal)).toBeNull()
})
