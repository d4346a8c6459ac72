import { expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import type { Library } from '@ckpt/cuda'
import { EngineMemory, SlowSizes } from './engine-memory.ts'

const ALLOCATIONS = ['00', '01', '02'].map((handle) => ({ handle, bytes: 16 }))

/** A library that only notes what it is told, and opens what is not `broken`. */
function play({ broken = -1, streamsMax = 2 } = {}) {
  const calls: string[] = []
  let streams = 0
  const library = {
    streamCreate: () => {
      if (streams === streamsMax) throw new CkptError('device_error', 'no stream')
      return ++streams
    },
    streamDestroy: (stream: number) => calls.push(`destroy ${stream}`),
    streamSync: () => {},
    memoryOpen: (_device: number, [handle]: Uint8Array) => {
      if (handle === broken) throw new CkptError('device_error', 'no room')
      calls.push(`open ${handle}`)
      return 100 + (handle as number)
    },
    memoryFree: (memory: number) => calls.push(`close ${memory}`),
  } as unknown as Library
  return { calls, library, made: () => new EngineMemory(library, 0, ALLOCATIONS) }
}

test('what a copy needs is opened when it is asked for, the rest in order, each once', () => {
  const { calls, made } = play()
  const memory = made()
  expect([memory.memory(1), memory.memory(1)]).toEqual([101, 101])
  expect(memory.isOpen).toBe(false)
  memory.openNext()
  memory.openNext()
  expect(memory.isOpen).toBe(true)
  memory.openNext()
  expect(calls).toEqual(['open 1', 'open 0', 'open 2'])
  memory.free()
  expect(calls.slice(3)).toEqual(['close 101', 'close 100', 'close 102', 'destroy 2', 'destroy 1'])
})

test('an allocation of a size that took long is opened last, and one that did not is as all others again', () => {
  const { calls, library } = play({ streamsMax: 4 })
  const allocations = ['00', '01', '02'].map((handle, i) => ({ handle, bytes: i === 0 ? 64 : 16 }))
  const slow = new SlowSizes()
  slow.took(64, 5)
  const opened = () => {
    const memory = new EngineMemory(library, 0, allocations, slow)
    const slowAt: boolean[] = []
    for (; !memory.isOpen; memory.openNext()) slowAt.push(memory.nextIsSlow)
    expect(memory.nextIsSlow).toBe(false)
    return slowAt
  }
  expect(opened()).toEqual([false, false, true])
  expect(calls).toEqual(['open 1', 'open 2', 'open 0'])
  expect(opened()).toEqual([false, false, false])
  expect(calls.slice(3)).toEqual(['open 0', 'open 1', 'open 2'])
})

test('what is being closed is not opened again', () => {
  const { calls, made } = play()
  const memory = made()
  memory.memory(0)
  expect([memory.closeNext(), memory.closeNext()]).toEqual([true, false])
  expect(() => memory.memory(0)).toThrow('no allocation 0 to open')
  expect(() => memory.openNext()).toThrow('to open')
  expect(calls).toEqual(['open 0', 'close 100'])
})

test('an allocation that cannot be opened says so, and the others are closed', () => {
  const { calls, made } = play({ broken: 1 })
  const memory = made()
  const failure = (() => {
    try {
      memory.open()
    } catch (error) {
      return CkptError.wrap(error).failure
    }
  })()
  const message = "the engine's memory cannot be opened: no room"
  expect(failure).toMatchObject({ code: 'device_error', message })
  memory.free()
  expect(calls).toEqual(['open 0', 'close 100', 'destroy 2', 'destroy 1'])
})

test('all streams that write it are told, also that of copies out of other engines', () => {
  const { library } = play({ streamsMax: 5 })
  const alone = new EngineMemory(library, 0, ALLOCATIONS)
  expect(alone.streams).toEqual([alone.stream, alone.rowsStream])
  expect(() => alone.peerStream).toThrow('nothing is taken')
  const sharer = new EngineMemory(library, 0, ALLOCATIONS, new SlowSizes(), true)
  expect(sharer.streams).toEqual([sharer.stream, sharer.rowsStream, sharer.peerStream])
})

test('where there is only one stream none is left', () => {
  const { calls, made } = play({ streamsMax: 1 })
  expect(made).toThrow('no stream')
  expect(calls).toEqual(['destroy 1'])
})
