import { expect, test } from 'bun:test'
import { openLibrary } from '@ckpt/cuda'
import {
  failure,
  LIBRARY,
  MEMORY_START,
  safetensors,
  TestDir,
  u8,
} from '../registry/testing/fixture.ts'
import { MemoryClient } from './client.ts'
import type { LoadRequest } from './protocol.ts'

function load(part: number, files: string[]): LoadRequest {
  return {
    part,
    owner: null,
    files,
    inPlace: false,
    consume: false,
    peers: [],
    refuseConflicts: true,
    stream: false,
  }
}

test('answers come to their requests, failures as CkptError', async () => {
  const dir = new TestDir()
  const library = openLibrary(LIBRARY)
  const before = library.liveObjects()
  const client = await MemoryClient.start(MEMORY_START, () => {})
  const path = dir.write('a.safetensors', safetensors({ w: u8(1000, 1) }))
  const settled = await Promise.allSettled([
    client.call('load', load(1, [path])),
    client.call('load', load(2, [`${path}.missing`])),
    client.call('check', { files: [] }),
    client.call('check', { files: [12345] }),
  ])
  expect(settled.map(({ status }) => status)).toEqual([
    'fulfilled',
    'rejected',
    'fulfilled',
    'rejected',
  ])
  expect(settled[0]).toMatchObject({ value: { table: { names: ['w'] }, bytes: 1000 } })
  expect(settled[1]).toMatchObject({ reason: { code: 'file_not_found' } })
  expect(settled[3]).toMatchObject({ reason: { code: 'checkpoint_invalid' } })
  expect(client.pinnedBytes).toBe(2 * 2 ** 20)
  await client.call('close', null)
  client.terminate()
  expect(library.liveObjects()).toBe(before)
  dir.remove()
})

test('when the Worker dies, every request that waits and every later one fails as internal', async () => {
  const client = await MemoryClient.start(MEMORY_START, () => {})
  const waiting = [
    client.call('share', { name: 'm', bytes: [2 ** 20] }),
    client.call('check', { files: [] }),
  ]
  client.terminate()
  const settled = await Promise.allSettled(waiting)
  for (const result of settled) {
    expect(result).toMatchObject({ status: 'rejected', reason: { code: 'internal' } })
  }
  await failure(() => client.call('check', { files: [] }), 'internal', 'Worker')
})

test('a library that cannot be opened fails the start', async () => {
  const library = { kind: 'host', hostDevices: 65 } as const
  const outcome = await MemoryClient.start({ ...MEMORY_START, library }, () => {}).catch(
    (error) => error,
  )
  expect(outcome).toBeInstanceOf(Error)
})
