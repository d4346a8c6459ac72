import { expect, test } from 'bun:test'
import type { HeldVersion, VersionLease } from '../types.ts'
import { NodeLeases } from './node-leases.ts'

test('the leases of a leader that is lost are not those of the next one, which numbers them anew', () => {
  let held = 0
  const version = {
    table: { names: [], dtypes: new Uint8Array(0), shapes: [], bytes: [], owners: [], offsets: [] },
    sources: [],
    readings: [],
  } as unknown as HeldVersion
  const lease = (): VersionLease => {
    held++
    return {
      version,
      complete: Promise.resolve(0),
      check: null,
      serve: async () => [],
      release: () => void held--,
    }
  }
  const busy: boolean[] = []
  const leases = new NodeLeases({ lease, gather: () => {} } as never, (now) => busy.push(now))
  const request = {
    op: 'lease',
    name: 'model',
    lease: 1,
    updateId: 'one',
    held: null,
    gathers: true,
  } as const
  leases.take(request)
  const release = leases.leave()
  leases.take({ ...request, updateId: 'two' })
  expect(held).toBe(2)
  release()
  expect(held).toBe(1)
  expect(leases.of(1).updateId).toBe('two')
  leases.end(1, true)
  expect(held).toBe(0)
  expect(busy).toEqual([true, false])
})
