import { expect, setDefaultTimeout, test } from 'bun:test'
import { EngineClient } from '../../engines/client.ts'
import { enginesHere } from '../../engines/host.ts'
import { NAME, outcomeOf, requireWeights, tensorsOf, withUpdates } from './testing/fixture.ts'
import { proxyOf } from './testing/proxy.ts'
import { EngineRequest } from './request.ts'

setDefaultTimeout(60_000)

const never = () => new Promise<Response>(() => {})

test('a request that was never answered does not block the engine that was started meanwhile', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    const tensors = tensorsOf(4, 100_000, 1)
    await register(tensors)
    const engine = await start()
    const dead = proxyOf(engine, { 'POST /collective_rpc': never })
    const request = { update_url: `${dead.url}/collective_rpc`, timeout: 20 }
    const lost = updates.start(NAME, { ...request, open_timeout: 0.3 })
    expect((await outcomeOf(lost.done)).failure?.code).toBe('engine_timeout')
    const blocked = updates.start(NAME, { ...request, open_timeout: 0.3 })
    expect((await outcomeOf(blocked.done)).failure?.code).toBe('engine_busy')
    // its connections outlive its listener, as those of a host that has vanished do
    dead.stopListening()
    const next = proxyOf(engine, {}, dead.port)
    await updates.start(NAME, request).done
    await requireWeights(engine, tensors)
    await next.close()
    await dead.close()
  })
})

test('it is over when it was answered, or a while after the timeout of its update', async () => {
  const engine = new EngineClient({ url: 'http://127.0.0.1:1', uds: null }, enginesHere(null))
  const late = new EngineRequest(engine, 40, 40)
  const beganMs = performance.now()
  while (!(await late.isOver())) {
    expect(performance.now() - beganMs).toBeLessThan(10_000)
    await Bun.sleep(5)
  }
  expect(performance.now() - beganMs).toBeGreaterThan(75)
  // what its workers may read stays
  expect(late.signal.aborted).toBe(false)
  const answered = new EngineRequest(engine, 60_000)
  expect(await answered.isOver()).toBe(false)
  answered.answered()
  expect(await answered.isOver()).toBe(true)
})
